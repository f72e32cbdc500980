"""When faults were at work, by the machine's monotonic clock, and how often each had an effect."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Fault:
    """One fault, from its beginning to its end, monotonic seconds."""

    kind: str
    began: float
    #: Whether nobody can sweep while it lasts; else only some are hurt, and the others go on.
    outage: bool
    ended: float | None = None
    #: What it was done to: names of processes, of a kind of damage.
    note: str = ""


class FaultLog:
    """All faults of a round. Several threads write."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        #: How often a kind had an effect that could be seen, not how often it was tried.
        self.effects: Counter[str] = Counter()
        #: What faults could not do, or heal, as sentences: a round in which there is one says nothing.
        self.broken: list[str] = []
        self._lock = threading.Lock()

    @contextmanager
    def during(self, kind: str, *, outage: bool, note: str = "") -> Iterator[Fault]:
        """Note a fault that lasts as long as the body runs."""
        fault = Fault(kind, time.monotonic(), outage, note=note)
        with self._lock:
            self.faults.append(fault)
        try:
            yield fault
        finally:
            fault.ended = time.monotonic()

    def effect(self, kind: str, times: int = 1) -> None:
        """Count an effect that was seen."""
        with self._lock:
            self.effects[kind] += times
