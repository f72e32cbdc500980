"""Why traces are lost: the first thing that went wrong, not that there was no time left to ask once more."""

from __future__ import annotations

import pytest


def test_a_later_request_that_has_no_time_left_does_not_hide_why_the_first_one_failed() -> None:
    import requests  # noqa: PLC0415 - as late as the exporter

    from app.tracing.otel import _Session  # noqa: PLC0415

    session = _Session()
    with pytest.raises(requests.ConnectionError):
        session.post("http://127.0.0.1:1", timeout=60)
    with pytest.raises(ValueError, match="timeout"):
        session.post("http://127.0.0.1:1", timeout=-0.1)

    assert session.reason == "ConnectionError"
