"""What was seen, by the place where it was; each text once."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable

from tests.leaks.forms import Find, Forms


class Evidence:
    """Texts by places."""

    def __init__(self) -> None:
        self._texts: dict[str, set[str]] = defaultdict(set)
        self._lock = threading.Lock()

    def add(self, place: str, *texts: str) -> None:
        """Keep what was seen in a place."""
        with self._lock:
            self._texts[place].update(texts)

    def add_all(self, seen: Iterable[tuple[str, str]]) -> None:
        """Keep what was seen in many places."""
        for place, text in seen:
            self.add(place, text)

    def texts(self, place: str) -> str:
        """Return what was seen in the places that begin so."""
        with self._lock:
            return "\n".join(text for name, seen in self._texts.items() if name.startswith(place) for text in seen)

    @property
    def places(self) -> list[str]:
        """Where anything was seen."""
        with self._lock:
            return sorted(place for place, seen in self._texts.items() if any(seen))

    def find(self, forms: Forms) -> list[Find]:
        """Return every canary that is somewhere, a line of one place for each."""
        with self._lock:
            lines = {place: {line for text in seen for line in (text, place)} for place, seen in self._texts.items()}
        return [find for place, seen in sorted(lines.items()) for find in forms.find(place, "\n".join(sorted(seen)))]
