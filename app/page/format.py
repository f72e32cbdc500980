"""Times, durations and numbers as an operator reads them: short, in UTC, by the database's clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from app.page.markup import Html, tag

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))
#: What stands where there is nothing.
NONE = "—"


def span(length: timedelta) -> str:
    """Return a duration by its two largest units: `48s`, `2m13s`, `3h`, `5d2h`. One below zero counts as zero."""
    left = max(0, round(length.total_seconds()))
    parts: list[str] = []
    for size, unit in _UNITS:
        number, left = divmod(left, size)
        if number or parts:
            parts.append(f"{number}{unit}" if number else "")
        if len(parts) == 2:  # noqa: PLR2004 - see above
            break
    return "".join(parts) or "0s"


def seconds(number: float) -> str:
    """Return a short duration in seconds: `3ms`, `1.4s`, `12s`, `2m13s`."""
    if number <= -0.0005:  # noqa: PLR2004 - what is not rounded to zero
        return f"-{seconds(-number)}"
    if number < 0.9995:  # noqa: PLR2004 - what is not rounded up to a second
        return f"{abs(number) * 1000:.0f}ms"
    return f"{number:.1f}s" if number < 9.95 else span(timedelta(seconds=number))  # noqa: PLR2004 - two digits


def count(number: int) -> str:
    """Return a number with its thousands apart."""
    return f"{number:,}"


def plural(number: int, noun: str, nouns: str = "") -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def clock(moment: datetime, now: datetime) -> str:
    """Return a moment as a time of today, or with its day."""
    utc, today = moment.astimezone(UTC), now.astimezone(UTC)
    if utc.date() == today.date():
        return f"{utc:%H:%M:%S}"
    return f"{utc.day} {utc:%b} {utc:%H:%M}" if utc.year == today.year else f"{utc:%Y-%m-%d}"


def at(moment: datetime, now: datetime) -> Html:
    """Return a moment as an element."""
    return _time(clock(moment, now), moment)


def ago(moment: datetime, now: datetime) -> Html:
    """Return how long ago a moment was, as an element that has the moment itself."""
    return _time(f"{span(now - moment)} ago", moment)


def _time(text: str, moment: datetime) -> Html:
    utc = f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return tag("time", text, datetime=utc, title=utc)
