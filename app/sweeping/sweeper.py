"""What a sweeper is: a name, its settings, one function that makes a run's strategy, and the texts of its events.

A module in `actors/` declares one with the `sweeper` decorator. Everything else (lock, fence, transactions, time
budget, commit, metrics, ledger, event) is the runner's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from app.core.config import Settings, names_of, rename, variable
from app.core.events import Event, Kind, Severity
from app.core.values import Cadence
from app.sweeping.scans.due import Due
from app.sweeping.scans.tables import Index
from app.sweeping.steering.brake import Hold
from app.sweeping.steering.limits import BrakeSetting
from app.sweeping.strategy import Strategy
from app.sweeping.streak import Streak


class SweeperSettings(Settings):
    """What every sweeper's settings have: a cadence, and a brake. Subclasses declare `interval` with its names.

    The brake's variable has the name of the interval's, with another end.
    """

    interval: Cadence
    brake: BrakeSetting = variable(
        default=None,
        meaning="what holds a run that would change far more than usual: 10x (the usual number), 25% (of the table) or "
        "both, and for how long: 10x,25%,1h; never: until it is approved; unset: nothing",
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **words: Any) -> None:
        """Name the brake after the interval."""
        super().__pydantic_init_subclass__(**words)
        if names := names_of(cls, "interval"):
            rename(cls, "brake", names[0].removesuffix("_INTERVAL") + "_BRAKE")

    @property
    def tick(self) -> timedelta:
        """How often the sweeper is run: its interval, unless some of its work is due more often."""
        return self.interval

    @property
    def enabled(self) -> bool:
        """Whether the sweeper is registered at all."""
        return True

    @property
    def switch(self) -> str:
        """The variable that switches a sweeper on which is not enabled."""
        return ""

    @property
    def rests_without(self) -> str:
        """The table, or `table.column`, without which there is nothing to do; empty: the first that is needed."""
        return ""

    @property
    def hints(self) -> Mapping[str, str]:
        """What `sb-worker check` tells an operator where a table is there: texts by table, or by `table.column`."""
        return {}

    def problems(self, *, dev: bool) -> Iterable[str]:
        """Return what is wrong across variables, one line each without a value; asked only when enabled."""
        del dev
        return ()


S = TypeVar("S", bound=SweeperSettings)


@dataclass(frozen=True)
class Sweep:
    """What a run did: whole numbers under names from a closed set, and the cutoff it compared with.

    This is all that leaves a run towards logs, metrics and sinks, and it cannot hold a text: that no row content
    leaks is a matter of types.
    """

    changed: int = 0
    counts: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    cutoff: datetime | None = None

    def __post_init__(self) -> None:
        for number in (self.changed, *self.counts.values()):
            if type(number) is not int:
                raise TypeError("a sweep reports whole numbers only")
        if self.cutoff is not None and self.cutoff.tzinfo is None:
            raise TypeError("a cutoff knows its time zone")

    def plus(self, counts: Mapping[str, int]) -> Sweep:
        """Return the sum with one step's counts: `changed` and any others."""
        total = {name: self.counts.get(name, 0) + number for name, number in counts.items() if name != "changed"}
        merged = MappingProxyType({**self.counts, **total})
        return Sweep(self.changed + counts.get("changed", 0), merged, self.cutoff)


@dataclass(frozen=True)
class EventText:
    """The public texts of a sweeper's events; receivers match on them, so a change here is a breaking one."""

    severity: Severity
    done: str
    failed: str
    #: The name under which the number of changed rows is reported; empty where the other counts say it all.
    count: str
    #: May name the number as `{changed}`.
    detail: str = ""
    #: Counts that make an event a warning, and what such a one is called, where that differs.
    warn_by: tuple[str, ...] = ()
    warning: str = ""
    #: Counts that the event shows when they are zero, too.
    always: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sweeper(Generic[S]):
    """A registered sweeper."""

    name: str
    needs: Mapping[str, tuple[str, ...]]
    settings: type[S]
    text: EventText
    strategy: Callable[[S], Strategy]
    counts: tuple[str, ...] = ()
    #: The count that makes a run a failed one, to be tried again.
    fails_by: str = ""
    #: What it touches as well where that is there, with the privileges.
    uses: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    #: An index that the api has not, and by which a large table need not be read.
    index: Index | None = None
    #: What is due by these settings; None where that is not a matter of one table.
    due: Callable[[S], Due | None] = lambda _settings: None
    #: What is done in place of a run to see what it would do, where that asks others than PostgreSQL.
    dry_run: Callable[[S], Strategy] | None = None
    #: The counts that say how large a run was; `changed` where there are none.
    size: tuple[str, ...] = ("changed",)

    @property
    def table(self) -> str:
        """The table that is swept."""
        return next(iter(self.needs)).partition(".")[0]

    def rests_without(self, settings: S) -> str:
        """Return the table, or `table.column`, without which there is nothing to do."""
        return settings.rests_without or next(iter(self.needs))

    def backlog(self, settings: S) -> Due | None:
        """Return what is due, to be counted."""
        due = self.due(settings)
        return due.by(self.index) if due and self.index else due

    def done(self, sweep: Sweep, **more: int) -> Event:
        """Return the event of what was changed."""
        detail = self.text.detail.format(changed=sweep.changed)
        if not detail and sweep.cutoff is not None and self.text.severity is Severity.WARN:
            detail = f"cutoff={sweep.cutoff:%Y-%m-%dT%H:%M:%SZ}"
        counts = _not_zero(sweep)
        total = {self.text.count: sweep.changed} if self.text.count else {}
        total.update(dict.fromkeys(self.text.always, 0))
        alarming = any(name in counts for name in self.text.warn_by)
        severity = Severity.WARN if alarming else self.text.severity
        title = self.text.warning if alarming and self.text.warning else self.text.done
        return Event(self.name, severity, title, detail, {**total, **counts, **more})

    def failed(self, failure: str, sweep: Sweep, streak: Streak) -> Event:
        """Return the event of a streak, told by its newest failure: `failure` is a class name and an SQLSTATE.

        It is the same incident however often it is told, and says since when it lasts from the second failure on.
        """
        counts = _not_zero(sweep)
        if streak.failures > 1 and streak.since is not None:
            failure = f"{failure}; failing since {streak.since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
            counts["failed_attempts"] = streak.failures
        return Event(self.name, Severity.ERROR, self.text.failed, failure, counts, Kind.FAILED)

    def recovered(self, streak: int) -> Event:
        """Return the event of the end of a streak of failures."""
        return Event(self.name, Severity.INFO, "sweep recovered", "", {"failed_attempts": streak}, Kind.RECOVERED)

    def braked(self, hold: Hold) -> Event:
        """Return the event of a run that was held before it changed anything."""
        detail = f"{hold.text}; `sb-worker sweep {self.name} --approve` runs it now"
        return Event(self.name, Severity.ERROR, "sweep braked, nothing was changed", detail, hold.numbers, Kind.NOTICE)

    def rows_failed(self, number: int) -> Event:
        """Return the event of rows that could not be swept."""
        title = "rows could not be swept and were stepped around"
        return Event(self.name, Severity.WARN, title, "", {"rows_failed": number}, Kind.NOTICE)


def _not_zero(sweep: Sweep) -> dict[str, int]:
    return {name: number for name, number in sweep.counts.items() if number}


def sweeper(  # noqa: PLR0913 - what a sweeper is
    name: str,
    *,
    needs: Mapping[str, tuple[str, ...]],
    settings: type[S],
    text: EventText,
    counts: tuple[str, ...] = (),
    fails_by: str = "",
    uses: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    index: Index | None = None,
    due: Callable[[S], Due | None] = lambda _settings: None,
    dry_run: Callable[[S], Strategy] | None = None,
    size: tuple[str, ...] = ("changed",),
) -> Callable[[Callable[[S], Strategy]], Sweeper[S]]:
    """Declare the decorated function as the sweeper `name`.

    The function returns the strategy of one run. Each of its steps is a transaction, and counts how many rows it
    `changed`, with further numbers under the names in `counts`. `needs` maps the api's tables that it touches, the
    swept one first, to the privileges that it must have on them; `table.column` where only a table that is new enough
    to have that column will do. The sweeper rests while the first one is not there. `uses` are those without which it
    does all its other work; with `index` it need not read a table that is large. `due` is what its backlog is counted
    by, in rows that the counts in `size` have the number of once they are done. A run in which the count `fails_by` is
    not zero has failed. `dry_run` is for a strategy that asks others than PostgreSQL: one that only counts. `name` is a
    lock key, a metric label and a log word: renaming it is a breaking change.
    """

    def declare(strategy: Callable[[S], Strategy]) -> Sweeper[S]:
        return Sweeper(
            name, needs, settings, text, strategy, counts, fails_by, uses, index, due, dry_run=dry_run, size=size
        )

    return declare
