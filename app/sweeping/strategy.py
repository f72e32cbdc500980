"""How a sweep goes through its work: in steps, each in a transaction of its own, until a step is the last one.

A sweeper's function makes a strategy for each run. Most sweepers need none of their own: `app.sweeping.scans` has
three that take their SQL, and `app.sweeping.items` one that takes a list.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

import psycopg
import structlog
from psycopg.rows import dict_row

from app.storage.postgres import only_row
from app.sweeping.schedule import Slot, moment

if TYPE_CHECKING:
    from psycopg import Cursor

log = structlog.get_logger("sweep")


class Step(NamedTuple):
    """What one transaction did: how many rows it `changed`, and other counts under the sweeper's names."""

    counts: Mapping[str, int]
    #: Whether nothing is left to do.
    last: bool
    #: Where the next run goes on if this one ends here for lack of time; None while work under way forbids an end.
    resume_at: int | None = 0
    #: Whether this run has done its share, whatever time is left.
    enough: bool = False


class Took(NamedTuple):
    """How long a transaction took, in seconds."""

    seconds: float
    #: What the step did, as far as it is more than a round trip.
    work: float
    #: A round trip: to the server, through it and back, when there is nothing to do.
    round_trip: float


class Stopwatch:
    """Takes the parts of a transaction's time."""

    def __init__(self, round_trip: float) -> None:
        self._shortest = round_trip
        self._started = self._from = self._stepped = time.perf_counter()

    def begun(self) -> None:
        """Note that the claim has been answered; what comes now is the step."""
        self._from = time.perf_counter()
        self._shortest = min(self._shortest, self._from - self._started)

    def stepped(self) -> None:
        """Note that the step is done."""
        self._stepped = time.perf_counter()

    def committed(self) -> Took:
        """Return what the transaction took, which is committed."""
        now = time.perf_counter()
        shortest = min(self._shortest, now - self._stepped)
        return Took(now - self._started, max(0.0, self._stepped - self._from - shortest), shortest)


class TargetLocks:
    """Locks of single targets beside the sweeper's own, for work that others do as well. These are nobody's."""

    def take(self, target: str) -> bool:
        """Take a target's lock, which runs out by itself; return whether it was free."""
        del target
        return True

    def release(self, targets: Iterable[str]) -> None:
        """Give locks of targets back before they run out. Never raises."""


@dataclass(frozen=True)
class Run:
    """A run as its strategy sees it: a cursor in an open transaction, and times by the database's clock, UTC."""

    cursor: Cursor[dict[str, Any]]
    #: The table that is swept.
    table: str
    slot: Slot
    #: When the run began.
    now: datetime
    #: What is older than this is swept.
    cutoff: datetime
    #: Where the run before this one stopped for lack of time, 0 if it did not.
    position: int = 0
    #: How many rows to begin with, where a run before this one found the usual number too slow.
    batch_rows: int | None = None
    #: How large the table was a moment ago; of a partitioned one, the largest partition.
    pages: int = 0
    partitions: int = 1
    #: How many rows lie on a page of it, by the statistics; 0 when there are none.
    rows_per_page: float = 0.0
    #: How many pages it goes through at most; None for all.
    most_pages: int | None = None
    #: How many rows its next step may change at most; None for as many as it thinks best.
    most_rows: int | None = None
    #: How long its statements wait for a lock where nothing else is said, as PostgreSQL has it.
    lock_timeout: str = "0"
    targets: TargetLocks = field(default_factory=TargetLocks)

    @property
    def slot_start(self) -> datetime:
        """The start of the slot that is being run."""
        return moment(self.slot)

    @property
    def partitioned(self) -> bool:
        """Whether one place, a page and an item, means many rows."""
        return self.partitions > 1

    def row(self, query: LiteralString, **parameters: object) -> dict[str, Any]:
        """Execute a statement that always answers with one row, and return it."""
        return only_row(self.cursor.execute(query, parameters))

    def send(self, query: LiteralString, **parameters: object) -> Cursor[dict[str, Any]]:
        """Execute a statement, whose answer is read from the cursor; in a pipeline that is once the block has ended."""
        return self.cursor.connection.cursor(row_factory=dict_row).execute(query, parameters)

    def rows(self, query: LiteralString, **parameters: object) -> list[dict[str, Any]]:
        """Execute a statement and return its rows."""
        return self.cursor.execute(query, parameters).fetchall()


class Strategy:
    """How one run goes through its work. Made for each run, used by one thread."""

    #: How far before the database's now the run's cutoff lies.
    older_than = timedelta(0)
    #: Rows that could not be swept and were stepped around.
    rows_failed = 0
    #: Whether a run that ended now would leave the next one where it began itself: before a row that is to be passed.
    stuck = False

    @property
    def resume_at(self) -> int:
        """Where the next run goes on if this one ends after a step that failed."""
        return 0

    def ask(self, run: Run) -> None:
        """Send what `step` begins with, together with what begins the transaction; `step` reads the answer."""

    def step(self, run: Run, *, over: bool) -> Step:
        """Do one bounded piece of work in the transaction that is open. `over`: time is up, begin nothing new."""
        raise NotImplementedError

    @property
    def batch_rows(self) -> int | None:
        """How many rows the next run is to begin with; None for the usual number."""
        return None

    def recover(self, error: psycopg.Error) -> bool:
        """Make the next step smaller after one that failed by its rows; return whether it is worth another try.

        A row that fails by itself is stepped around. The failed step has been rolled back.
        """
        del error
        return False

    def committed(self, took: Took) -> None:
        """Note that the step's transaction is committed, and how long it took."""

    @property
    def looks(self) -> bool:
        """Whether it wants to `look` before the next step."""
        return False

    def look(self, read: Callable[..., dict[str, Any]], over: Callable[[], bool]) -> None:
        """Look where the next step is to begin, by statements that change nothing, until time is `over`.

        `read` executes one that always answers with one row, and returns it; raises LeaseLost.
        """

    def wait(self, stopping: Callable[[], bool]) -> None:
        """Work between two transactions, where others may be waited for.

        `stopping` returns whether the process is to end, and raises LeaseLost; it must be called often.
        """

    def close(self) -> None:
        """Release everything, however the run ended."""


class Passing(Strategy):
    """Passes on to another strategy, which may be chosen late and changed on the way."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.older_than = strategy.older_than

    @property
    def rows_failed(self) -> int:  # type: ignore[override]
        """Pass it on."""
        return self.strategy.rows_failed

    @property
    def stuck(self) -> bool:  # type: ignore[override]
        """Pass it on."""
        return self.strategy.stuck

    @property
    def resume_at(self) -> int:
        """Pass it on."""
        return self.strategy.resume_at

    @property
    def batch_rows(self) -> int | None:
        """Pass it on."""
        return self.strategy.batch_rows

    @property
    def looks(self) -> bool:
        """Pass it on."""
        return self.strategy.looks

    def ask(self, run: Run) -> None:
        """Pass it on."""
        self.strategy.ask(run)

    def step(self, run: Run, *, over: bool) -> Step:
        """Pass it on."""
        return self.strategy.step(run, over=over)

    def recover(self, error: psycopg.Error) -> bool:
        """Pass it on."""
        return self.strategy.recover(error)

    def committed(self, took: Took) -> None:
        """Pass it on."""
        self.strategy.committed(took)

    def look(self, read: Callable[..., dict[str, Any]], over: Callable[[], bool]) -> None:
        """Pass it on."""
        self.strategy.look(read, over)

    def wait(self, stopping: Callable[[], bool]) -> None:
        """Pass it on."""
        self.strategy.wait(stopping)

    def close(self) -> None:
        """Pass it on."""
        self.strategy.close()
