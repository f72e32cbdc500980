"""An overview, or what it is made of, as JSON: the model's own names, times in ISO 8601, durations in seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any


@dataclass(frozen=True)
class JsonWriter:
    """Writes dataclasses and what they are made of. What is longer than a bound is cut; None: as long as it is."""

    most_parts: int | None = None
    most_characters: int | None = None
    #: Whether there are no blanks between the parts.
    compact: bool = False

    def text(self, content: object) -> str:
        """Return a document in one line."""
        return json.dumps(self._plain(content), separators=(",", ":") if self.compact else None)

    def _plain(self, value: object) -> Any:  # noqa: PLR0911 - one for each type
        if isinstance(value, Enum):
            return value.value
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, datetime):
            return value.isoformat()
        if isinstance(value, timedelta):
            return value.total_seconds()
        if isinstance(value, Mapping):
            return {str(key): self._plain(part) for key, part in value.items()}
        if is_dataclass(value) and not isinstance(value, type):
            return {field.name: self._plain(getattr(value, field.name)) for field in fields(value)}
        if isinstance(value, tuple) and (names := getattr(value, "_fields", None)):
            return {name: self._plain(part) for name, part in zip(names, value, strict=True)}
        if isinstance(value, frozenset):
            return sorted(map(self._plain, value))[: self.most_parts]
        if isinstance(value, list | tuple):
            return [self._plain(part) for part in value[: self.most_parts]]
        return str(value)[: self.most_characters]
