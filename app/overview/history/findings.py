"""What a check of the ledger finds of one sweeper: sums, and what is wrong, slot by slot as far as there is room."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

#: Faults that are kept of each check of a sweeper; of more it is known how many there are.
MOST_KEPT = 10


class Check(StrEnum):
    """What the ledger must hold."""

    #: A slot has at most one successful run, and no run follows that of a newer slot.
    ONCE = "once"
    #: A slot has a run, or is covered by one.
    EVERY = "every"
    #: Each claim has a higher fencing token than the one before.
    TOKENS = "tokens"
    #: No run commits after its successor has begun.
    OVERLAP = "overlap"
    #: A run covers no more slots than there are without a run.
    COVERED = "covered"
    #: A run that is under way is somebody's.
    RUNNING = "running"
    #: The numbers and times of a row fit its outcome.
    COUNTS = "counts"


class Fault(NamedTuple):
    """Something that must not be: which check has found it, and of which slot."""

    check: Check
    slot: datetime
    text: str


@dataclass
class Findings:
    """What was found of one sweeper; counts of slots and runs in the window."""

    name: str
    #: The first slot that was looked at.
    since: datetime | None = None
    slots: int = 0
    runs: int = 0
    covered: int = 0
    #: Slots whose run was interrupted, and whose work the next run did.
    taken_over: int = 0
    #: Slots after the newest run that nobody has run yet, older than the current one.
    waiting: int = 0
    by_hand: int = 0
    #: Attempts that failed.
    failed: int = 0
    #: Why some of it could not be judged, or looks odd and is not.
    notes: list[str] = field(default_factory=list)
    kept: list[Fault] = field(default_factory=list)
    number: Counter[Check] = field(default_factory=Counter)

    def add(self, fault: Fault) -> None:
        """Count a fault, and keep it while there is room."""
        self.number[fault.check] += 1
        if self.number[fault.check] <= MOST_KEPT:
            self.kept.append(fault)

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def faults(self) -> int:
        """How many faults there are."""
        return self.number.total()

    def as_json(self) -> dict[str, Any]:
        """Return all of it in JSON's types."""
        sums = ("slots", "runs", "covered", "taken_over", "waiting", "by_hand", "failed", "notes")
        return {
            "name": self.name,
            "since": self.since.isoformat() if self.since else None,
            **{key: getattr(self, key) for key in sums},
            "faults": {check.value: number for check, number in self.number.items()},
            "wrong": [
                {"check": fault.check.value, "slot": fault.slot.isoformat(), "text": fault.text} for fault in self.kept
            ],
        }
