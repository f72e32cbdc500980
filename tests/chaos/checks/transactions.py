"""The audited changes by transaction: which run each of the worker's transactions is of, by its own row of the ledger.

A run's transaction writes its row: it is inserted by the one that claims, and each step has one more batch. So whoever
changes a row of the control plane without that is no run, and a run without its token is not what wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tests.chaos.history import Change, History

#: The control plane's tables that are audited, which runs alone may change.
SWEPT = frozenset(
    {
        "secret_wraps",
        "sessions",
        "secrets",
        "agents",
        "sync_jobs",
        "reveal_sessions",
        "gitops_observations",
        "access_requests",
        "provider_connections",
    }
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def when(text: str) -> datetime:
    """Read a moment that PostgreSQL has written into JSON."""
    return datetime.fromisoformat(text)


def micros(moment: datetime | timedelta) -> int:
    """Count the whole microseconds since the epoch, or of a length of time."""
    return (moment if isinstance(moment, timedelta) else moment - _EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True)
class Claim:
    """A run's row as its claim has inserted it."""

    run: int
    name: str
    token: int
    #: The start of its slot, microseconds since the epoch, and how many slots before it are covered.
    slot: int
    covered: int
    by_hand: bool
    cutoff: datetime
    worker: str
    #: The change that inserted it.
    change: Change


@dataclass
class Transaction:
    """Changes of the worker's that were committed together."""

    xid: int
    began: datetime
    session: str
    changes: list[Change] = field(default_factory=list)

    def of(self, relation: str) -> list[Change]:
        """Return its changes of one table."""
        return [change for change in self.changes if change.relation == relation]

    @property
    def swept(self) -> list[Change]:
        """Its changes of the control plane's rows."""
        return [change for change in self.changes if change.relation in SWEPT]

    @property
    def steps(self) -> list[Change]:
        """The changes by which runs write down that they have done a step, or have ended well."""
        return [change for change in self.of("sweep_run") if _is_step(change)]

    @property
    def runs(self) -> set[int]:
        """The runs that it is of: one, or none."""
        return {change.after["id"] for change in self.steps}


def _is_step(change: Change) -> bool:
    before, after = change.before, change.after
    if change.op == "insert":
        return bool(after["outcome"] == "running")
    if change.op != "update":
        return False
    return bool(after["batches"] > before["batches"] or after["outcome"] == "success" != before["outcome"])


def transactions(history: History) -> Sequence[Transaction]:
    """Return the worker's transactions, in the order of their first changes."""
    found: dict[int, Transaction] = {}
    for change in history.changes:
        if change.ours:
            new = Transaction(change.xid, change.began, change.session)
            found.setdefault(change.xid, new).changes.append(change)
    return list(found.values())


def claims(history: History) -> dict[int, Claim]:
    """Return all claims that were committed, by the ids of their runs, in the order of their commits."""
    return {
        change.after["id"]: claim_of(change)
        for change in history.changes
        if change.relation == "sweep_run" and change.op == "insert" and change.after["outcome"] == "running"
    }


def claim_of(change: Change) -> Claim:
    """Return the claim whose row this change has inserted."""
    row = change.after
    return Claim(
        run=row["id"],
        name=row["name"],
        token=row["token"],
        slot=micros(when(row["slot"])),
        covered=row["covered"],
        by_hand=row["requested_by"] is not None,
        cutoff=when(row["cutoff"]),
        worker=row["worker"],
        change=change,
    )


def moves(history: History) -> dict[str, list[Change]]:
    """Return each sweeper's changes of its fence that give a new token, in the order of their commits."""
    found: dict[str, list[Change]] = {}
    for change in history.changes:
        if change.relation == "sweep_state" and change.after["token"] != change.before.get("token", 0):
            found.setdefault(change.after["name"], []).append(change)
    return found
