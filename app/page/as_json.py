"""An overview as JSON, with a bound: the model's own names, times in ISO 8601, durations in seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from app.page.markup import MOST_CHARACTERS

#: Parts of a list that are shown.
MOST_PARTS = 100


def to_json(content: object) -> bytes:
    """Return dataclasses and what they are made of."""
    return json.dumps(_plain(content), separators=(",", ":"), ensure_ascii=True).encode() + b"\n"


def _plain(value: object) -> Any:  # noqa: PLR0911 - one for each type
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple) and (names := getattr(value, "_fields", None)):
        return {name: _plain(part) for name, part in zip(names, value, strict=True)}
    if isinstance(value, frozenset):
        return sorted(map(_plain, value))[:MOST_PARTS]
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value[:MOST_PARTS]]
    return str(value)[:MOST_CHARACTERS]
