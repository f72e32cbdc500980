"""Who may be hurt: of each kind one is left that is well, so that there is somebody to take over."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment

LEAST_WELL = 1


def kind_of(name: str) -> str:
    """Return the kind of a process: its name without its number."""
    return name.rstrip("0123456789")


class Victims:
    """The processes that a fault is at now. Several threads ask."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._hurt: Counter[str] = Counter()
        #: Main processes by their pids that have answered once.
        self._up: set[int] = set()
        self._lock = threading.Lock()

    @contextmanager
    def one_of(self, kind: str, chance: random.Random) -> Iterator[str | None]:
        """Yield a process of this kind to be hurt while the body runs; None when nobody may be."""
        names = self._deployment.names(kind)
        with self.hurting(chance.choice(names) if names else "") as name:
            yield name

    @contextmanager
    def hurting(self, name: str) -> Iterator[str | None]:
        """Yield the name if this one may be hurt, while the body runs; None when it may not."""
        with self._lock:
            may = bool(name) and self._may(name)
            self._hurt[name] += may
        try:
            yield name if may else None
        finally:
            with self._lock:
                self._hurt[name] -= may

    def _may(self, name: str) -> bool:
        kind = kind_of(name)
        others = [other for other in self._deployment.names(kind) if other != name and not self._hurt[other]]
        return not self._hurt[name] and sum(self._is_up(other) for other in others) >= LEAST_WELL

    def _is_up(self, name: str) -> bool:
        process = self._deployment.processes.get(name)
        if process is None or process.popen.poll() is not None:
            return False
        if name.startswith("scheduler") or process.popen.pid in self._up:
            return True
        if process.get("/healthz").status_code == 200:
            self._up.add(process.popen.pid)
            return True
        return False
