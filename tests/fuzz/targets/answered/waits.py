"""Times that others write: Retry-After, dates in headers, times that an operator types."""

from __future__ import annotations

from datetime import UTC, datetime
from math import isfinite

from hypothesis import strategies as st

from app.core.backoff import retry_after
from app.core.errors import Fault, SinkUnavailable
from app.overview.history.when import ACCEPTED, parse_when
from tests.fuzz.target import target
from tests.fuzz.texts import CANARY, near, texts

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
SAMPLES = (
    *("120", "1.5", "Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 2026 07:28:00 -0000", "21 Oct 9999 23:59:59 -2359"),
    *("10m", "10m ago", "14:05", "14:05:59Z", "2026-11-23T14:05:00+01:00", "0001-01-01T00:00:00+14:00", "2026-W48-1"),
)
#: What a server has for now.
moments = (
    st.datetimes(datetime(1970, 1, 2), datetime(9000, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - it adds one
    | st.just(NOW)
)


@target("times", st.tuples(texts | near(*SAMPLES), moments), raw=lambda data: (data.decode("latin-1"), NOW), cases=300)
def times(given: tuple[str, datetime]) -> None:
    text, now = given
    wait = retry_after(text, now)
    assert wait is None or (wait >= 0 and isfinite(wait))
    bounded = SinkUnavailable(Fault.RATE_LIMITED, retry_after=wait).retry_after
    assert bounded is None or 0 <= bounded <= 3600
    try:
        when = parse_when(text, now)
    except ValueError as error:
        assert str(error) == f"not a time; {ACCEPTED}"
        assert CANARY not in str(error)
    else:
        assert when.tzinfo is not None
