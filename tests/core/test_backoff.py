"""A server's wish to be left alone, in whatever form it comes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from app.core.backoff import retry_after

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 1.5 ", 1.5),
        ("0", 0.0),
        ("Wed, 25 Nov 2026 12:00:30 GMT", 30.0),
        ("Wed, 25 Nov 2026 11:00:00 GMT", 0.0),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 +99999999999999", None),
        ("Wed, 21 Oct 9999 23:59:59 -2359", None),
        ("Wed, 25 Nov 2026 12:00:30 -0000", None),
        ("-5", None),
        ("nan", None),
        ("1e9", None),
        ("9" * 5000, None),
        ("", None),
        (",,,", None),
        ("\x00\ud800", None),
    ],
)
def test_a_wish_is_seconds_or_a_date_and_anything_else_is_none(text: str, seconds: float | None) -> None:
    found = retry_after(text, NOW)
    if text.startswith("Wed, 21 Oct 9999 2"):  # a date at the end of time is far away, or none
        assert found is None or found > 1e9
    else:
        assert found == seconds
