"""The parts of an overview: plain values, times aware and by the database's clock; no text of a row or a stranger."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from app.fleet.processes import Process
from app.sweeping.scans.due import Backlog


class State(StrEnum):
    """Whether a sweeper is to run."""

    ON = "on"
    OFF = "off"
    PAUSED = "paused"
    BRAKED = "braked"
    #: The api's table that it needs is not there.
    RESTING = "resting"


class Verdict(StrEnum):
    """What an overview comes to."""

    FINE = "fine"
    DEGRADED = "degraded"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RunPoint:
    """One run of the ledger: `seconds` is how long it took, `lateness` seconds from its slot to its start."""

    slot: datetime
    started_at: datetime
    outcome: str
    lateness: float
    changed: int
    seconds: float | None = None
    worker: str = ""
    covered: int = 0
    handed_over: bool = False
    #: Class name and SQLSTATE.
    error: str = ""
    #: Who asked for it, if it was no tick.
    requested_by: str = ""


@dataclass(frozen=True)
class Holder:
    """Who holds a sweeper's lock: a run of ours, by its `worker`, or a stranger whose `worker` is empty."""

    worker: str
    since: datetime | None
    #: When the lock runs out unless it is renewed; None where Redis does not let us ask.
    expires_in: timedelta | None


@dataclass(frozen=True)
class Blocker:
    """A session that keeps a sweep from a table: its pid, 0 for a prepared transaction, and what the role may see."""

    table: str
    pid: int
    #: PostgreSQL's word, such as "idle in transaction"; empty where it is not shown to our role.
    state: str
    #: How old its transaction is.
    age: timedelta | None
    #: Whether it is of the role that we connect as.
    own_role: bool


@dataclass(frozen=True)
class SweeperView:
    """One sweeper."""

    name: str
    interval: timedelta
    state: State
    #: Why it is not on: a variable, a table, or who paused it and what for.
    reason: str
    #: Since when it is paused or braked.
    since: datetime | None
    #: Until when it is paused or braked.
    until: datetime | None
    next_tick: datetime
    #: Its newest runs, the oldest first; empty: it never ran.
    runs: tuple[RunPoint, ...]
    last_success: datetime | None
    #: Since when a run is owed that nobody has made; None while all is well, or it is not to run.
    overdue_since: datetime | None
    holder: Holder | None
    #: None where it cannot be counted cheaply.
    backlog: Backlog | None
    #: Failed attempts in a row, and since when.
    failures: int
    failing_since: datetime | None
    #: Class name and SQLSTATE of the last failed attempt, while it fails.
    error: str = ""
    sqlstate: str = ""
    #: Who keeps it from its table, where it fails by waiting.
    blockers: tuple[Blocker, ...] = ()
    #: Runs that a pass through the whole table takes.
    runs_a_pass: int = 1
    #: Its cadence by the settings of who reads this; `interval` is that of the processes, where any live.
    own_interval: timedelta | None = None

    @property
    def last(self) -> RunPoint | None:
        """Its newest run."""
        return self.runs[-1] if self.runs else None


@dataclass(frozen=True)
class SinkView:
    """One receiver of notifications. `state`: on, off, muted, resting."""

    name: str
    state: str
    reason: str
    until: datetime | None
    waiting: int
    oldest_waiting: datetime | None
    dead: int
    #: Since when the longest waiting delivery that may be sent now is due.
    due_since: datetime | None = None


@dataclass(frozen=True)
class ServerView:
    """PostgreSQL or Redis: a word of a closed set where it is of no use now, empty where it is well."""

    name: str
    problem: str
    version: str
    detail: str = ""


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be: what, and the command or step that mends it."""

    subject: str
    text: str
    remedy: str
    #: Whether it is worth to be known, and nothing is the worse for it.
    note: bool = False


@dataclass(frozen=True)
class Overview:
    """A deployment at one moment. Without PostgreSQL there are servers and problems only."""

    deployment: str
    now: datetime
    sweepers: tuple[SweeperView, ...]
    processes: tuple[Process, ...]
    sinks: tuple[SinkView, ...]
    servers: tuple[ServerView, ...]
    #: Who keeps whom from our tables, or the api's: looked for only where something has waited.
    blockers: tuple[Blocker, ...] = ()
    #: Parts that could not be read.
    unread: frozenset[str] = frozenset()
    problems: tuple[Problem, ...] = ()
    verdict: Verdict = Verdict.UNKNOWN
