"""An overview as JSON, for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from app.overview.model import Overview


def as_json(overview: Overview) -> str:
    """Return one document: moments in ISO 8601, lengths of time in seconds, verdict and problems first."""
    plain = asdict(overview)
    plain["unread"] = sorted(overview.unread)
    for view, sweeper in zip(plain["sweepers"], overview.sweepers, strict=True):
        view["backlog"] = sweeper.backlog._asdict() if sweeper.backlog else None
    first = {name: plain.pop(name) for name in ("verdict", "problems", "now")}
    return json.dumps({**first, **plain}, default=_value)


def _value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(type(value).__name__)
