"""The header `Retry-After`."""

from __future__ import annotations

import re
from datetime import datetime
from email.utils import parsedate_to_datetime


def retry_after(text: str, now: datetime) -> float | None:
    """Return the wait in seconds that a `Retry-After` asks for as a number or a date; None for any other text."""
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except Exception:  # noqa: BLE001 - absurd dates raise ValueError, TypeError, OverflowError, IndexError
        return None
