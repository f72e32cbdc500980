"""How long to wait before something is tried again.

Doubled with each failure, bounded, and never quite the same; or as long as a server asks for.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime

#: A wait is multiplied by a number between 1 - JITTER and 1 + JITTER, so that those who failed together do not all
#: come back together.
JITTER = 0.2
#: Doubling ends here, far above any sensible bound, so that a long streak makes no number too large for a timedelta.
_MOST_DOUBLINGS = 20


def exponential(first: timedelta, failures: int, longest: timedelta) -> timedelta:
    """Return the wait after so many failures in a row, 1 or more: `first`, then twice that, ... at most `longest`."""
    return min(first * (1 << min(max(failures, 1) - 1, _MOST_DOUBLINGS)), longest)


def jittered(wait: timedelta, draw: float) -> timedelta:
    """Return the wait times 1 - JITTER to 1 + JITTER; `draw` is a random number in [0, 1)."""
    return wait * (1 - JITTER + 2 * JITTER * draw)


def retry_after(text: str, now: datetime) -> float | None:
    """Return the wait in seconds that a `Retry-After` asks for as a number or a date; None for any other text."""
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except Exception:  # noqa: BLE001 - absurd dates raise ValueError, TypeError, OverflowError, IndexError
        return None
