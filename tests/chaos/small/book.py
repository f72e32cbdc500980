"""A small round that never happened, written as an audit would have it: what the checks' own tests change."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.chaos.fault_log import Fault
from tests.chaos.history import Change, History, Received
from tests.chaos.surroundings.lock_record import LockStep
from tests.chaos.watch import Success

SECOND = timedelta(seconds=1)
BEGAN = datetime(2026, 11, 26, 12, tzinfo=UTC)
WRAPS, POLLER = "wraps-expired", "gitops-poller"


@dataclass
class Book:
    """Writes down what is committed, in its order; slots are seconds after `BEGAN`."""

    changes: list[Change] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    deliveries: list[dict[str, Any]] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    locks: list[LockStep] = field(default_factory=list)
    xid: int = 700

    def transaction(self, now: float) -> None:
        """Begin a transaction, so many seconds after the beginning."""
        self.xid += 1
        self.now = BEGAN + now * SECOND

    def note(self, relation: str, op: str, before: dict[str, Any], after: dict[str, Any], session: str) -> None:
        """Write down one change of the transaction."""
        n = len(self.changes) + 1
        change = Change(n, self.xid, self.now, self.now, True, session, relation, op, dict(before), dict(after))
        self.changes.append(change)

    def state(self, name: str, **columns: Any) -> None:
        """Change the fence's row of a sweeper."""
        before = self.states.get(name, {})
        after = {"name": name, "token": 0, "failures": 0, **before, **columns}
        self.states[name] = after
        self.note("sweep_state", "update" if before else "insert", before, after, "worker0")

    def run(self, number: int, **columns: Any) -> None:
        """Change a row of the ledger."""
        before = self.runs.get(number, {})
        after = {**before, "id": number, **columns}
        self.runs[number] = after
        self.note("sweep_run", "update" if before else "insert", before, after, "worker0")

    def claim(self, number: int, name: str, slot: int, covered: int = 0) -> None:
        """Claim a slot: the fence moves, and a row is opened."""
        state = self.states.get(name, {"token": 0, "last_slot": "1970-01-01T00:00:00+00:00"})
        token, moment = state["token"] + 1, (BEGAN + slot * SECOND).isoformat()
        self.state(name, token=token, last_slot=moment, previous_slot=state["last_slot"])
        self.run(
            number,
            name=name,
            slot=moment,
            covered=covered,
            token=token,
            worker="vm:1",
            requested_by=None,
            cutoff=self.now.isoformat(),
            outcome="running",
            changed=0,
            batches=0,
            counts={},
        )

    def step(self, number: int, deleted: int, outcome: str = "running") -> None:
        """Delete wraps that are due, and count them."""
        row = self.runs[number]
        for _ in range(deleted):
            self.note("secret_wraps", "delete", {"id": str(uuid.uuid4()), "expires_at": row["cutoff"]}, {}, "worker0")
        self.run(number, changed=row["changed"] + deleted, batches=row["batches"] + 1, outcome=outcome)

    def event(self, kind: str = "swept", **numbers: int) -> None:
        """Tell of it, and have it delivered everywhere."""
        event: dict[str, Any] = {"id": str(uuid.uuid4()), "kind": kind, "component": WRAPS, "severity": "info"}
        event |= {"title": f"wraps {kind}", "metadata": numbers, "tallies": []}
        self.note("notification_event", "insert", {}, event, "worker0")
        self.events.append(event)
        for target in ("noop", "webhook", "slack"):
            delivery = {"id": len(self.deliveries) + 1, "event_id": event["id"], "target": target, "digest": None}
            self.deliveries.append({**delivery, "state": "delivered", "reason": "", "attempts": 1})
        at = (self.now - BEGAN).total_seconds()
        body = {"title": event["title"], "metadata": numbers}
        context = {"type": "context", "elements": [{"text": f"{WRAPS} · then · {event['id']}"}]}
        self.received.append(Received(at, "webhook", event["id"], body))
        self.received.append(Received(at, "slack", "", {"text": event["title"], "blocks": [context]}))

    def lock(self, name: str, token: str, since: float, until: float | None = None) -> None:
        """Take a sweeper's lock for half a second, and release it where it is said when."""
        self.lock_step(since, name, "taken", token)
        if until is not None:
            self.lock_step(until, name, "released", token)

    def lock_step(self, at: float, name: str, what: str, token: str, segment: int = 1) -> None:
        """Do something to a sweeper's lock."""
        lease = SECOND / 2 if what == "taken" else 0 * SECOND
        self.locks.append(LockStep(BEGAN + at * SECOND, segment, name, what, token, lease))

    def history(self) -> History:
        """Return the round; what was delivered is committed at its end."""
        self.transaction(11.0)
        for delivery in self.deliveries:
            self.note("notification_delivery", "insert", {}, delivery, "notifier0")
        return History(
            changes=self.changes,
            commits={change.xid: change.began for change in self.changes},
            runs=list(self.runs.values()),
            received=self.received,
            renewed_and_lost={"secret_wraps": 0},
            cadences=dict.fromkeys((WRAPS, POLLER), (SECOND,)),
            locks=sorted(self.locks, key=lambda step: step.at),
            faults=[Fault("kill", 3.2, outage=False, ended=3.3, note="worker0")],
            successes=[Success(at, name) for at in range(1, 12) for name in (WRAPS, POLLER)],
            watched=(0.0, 12.0),
            calm=9.5,
        )


def small() -> Book:
    """Return a round: runs, one that is cut short, one that fails, slots that are covered, and polls."""
    book = Book()
    book.transaction(0.1)
    book.claim(1, WRAPS, 0)
    book.step(1, 2)
    book.transaction(0.2)
    book.step(1, 1, "success")
    book.event(deleted=3)
    book.transaction(1.1)
    book.claim(2, WRAPS, 1)
    book.step(2, 4)  # its worker is killed
    book.transaction(3.4)
    book.claim(3, WRAPS, 3, covered=1)
    book.run(2, outcome="interrupted")
    book.event(deleted=4, interrupted=1)
    book.step(3, 0, "success")
    book.transaction(4.1)
    book.claim(4, WRAPS, 4)
    book.step(4, 5)
    book.transaction(4.3)  # and fails: the slot is given back
    book.run(4, outcome="failure")
    book.state(WRAPS, last_slot=book.states[WRAPS]["previous_slot"])
    book.state(WRAPS, failures=1)
    book.event(deleted=5)
    book.event("failed")
    book.transaction(5.1)
    book.claim(5, WRAPS, 5, covered=1)
    book.step(5, 0, "success")
    book.state(WRAPS, failures=0)
    book.event("recovered")
    _polls(book)
    _locks(book)
    return book


def _locks(book: Book) -> None:
    for name in (WRAPS, POLLER):
        book.lock(name, "before", -2.0, -1.9)
    book.lock(WRAPS, "first", 0.05, 0.25)
    book.lock(WRAPS, "killed", 1.05)
    for token, since, until in (("third", 3.3, 3.45), ("fourth", 4.05, 4.35), ("fifth", 5.05, 5.15)):
        book.lock(WRAPS, token, since, until)
    for number in range(2):
        book.lock(POLLER, f"poll {number}", number + 0.45, number + 0.55)
    book.lock("readiness", "of no sweeper", 0.0)
    book.lock_step(11.0, "readiness", "renewed", "of no sweeper")


def _polls(book: Book) -> None:
    for number, polls in enumerate((1, 2)):
        book.transaction(number + 0.5)
        book.claim(100 + number, POLLER, number)
        before = {"id": "o", "polling_state": "active", "polls_count": polls - 1, "timeout_at": None}
        book.note("gitops_observations", "update", before, {**before, "polls_count": polls}, "worker1")
        book.step(100 + number, 0, "success")
