"""What a sweeper is: a name, its settings, one function that does one bounded batch, and the words it reports in.

A module in `actors/` declares one with the `sweeper` decorator. Everything else (lock, fence, batching, time
budget, commit, metrics, ledger, event) is the runner's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from app.core.config import Settings
from app.core.events import Event, Kind, Severity
from app.core.values import Cadence

if TYPE_CHECKING:
    from app.sweeping.batch import Batch


class SweeperSettings(Settings):
    """What every sweeper's settings have: a cadence. Subclasses declare `interval` with its variable names."""

    interval: Cadence

    @property
    def older_than(self) -> timedelta:
        """How far before the database's now the cutoff lies."""
        return timedelta(0)

    @property
    def enabled(self) -> bool:
        """Whether the sweeper is registered at all."""
        return True

    def problems(self, *, dev: bool) -> Iterable[str]:
        """Say what is wrong across variables, one line each without a value; asked only when enabled."""
        del dev
        return ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is accepted and still worth a line at boot."""
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
        """Add one batch: `changed` and any other counts."""
        total = {name: self.counts.get(name, 0) + number for name, number in counts.items() if name != "changed"}
        merged = MappingProxyType({**self.counts, **total})
        return Sweep(self.changed + counts.get("changed", 0), merged, self.cutoff)


@dataclass(frozen=True)
class Wording:
    """The public words of a sweeper's events; receivers match on them, so a change here is a breaking one."""

    severity: Severity
    done: str
    failed: str
    #: The name under which the number of changed rows is reported; empty where the other counts say it all.
    count: str
    #: May name the number as `{changed}`.
    detail: str = ""
    #: Counts that make an event a warning.
    warn_by: tuple[str, ...] = ()


class Outside(Protocol):
    """What a run does between its transactions, where it may wait for others."""

    def wait(self, stopping: Callable[[], bool]) -> None:
        """Work until the next transaction has something to do. `stopping` raises LeaseLost; ask it often."""
        ...

    def close(self) -> None:
        """Let go of everything, however the run ended."""
        ...


@dataclass(frozen=True)
class Sweeper(Generic[S]):
    """A registered sweeper."""

    name: str
    needs: Mapping[str, tuple[str, ...]]
    settings: type[S]
    wording: Wording
    batch: Callable[[Batch[S]], Mapping[str, int]]
    counts: tuple[str, ...] = ()
    #: The count that makes a run a failed one, to be tried again.
    fails_by: str = ""
    outside: Callable[[S], Outside] | None = None

    @property
    def table(self) -> str:
        """The table that is swept; the sweeper rests while it is not there."""
        return next(iter(self.needs))

    def done(self, sweep: Sweep, **more: int) -> Event:
        """Word what was changed."""
        detail = self.wording.detail.format(changed=sweep.changed)
        if not detail and sweep.cutoff is not None and self.wording.severity is Severity.WARN:
            detail = f"cutoff={sweep.cutoff:%Y-%m-%dT%H:%M:%SZ}"
        some = {name: number for name, number in sweep.counts.items() if number}
        total = {self.wording.count: sweep.changed} if self.wording.count else {}
        alarming = any(name in some for name in self.wording.warn_by)
        severity = Severity.WARN if alarming else self.wording.severity
        return Event(self.name, severity, self.wording.done, detail, {**total, **some, **more})

    def failed(self, failure: str, sweep: Sweep) -> Event:
        """Word the first failure of a streak: `failure` is a class name and an SQLSTATE."""
        some = {name: number for name, number in sweep.counts.items() if number}
        return Event(self.name, Severity.ERROR, self.wording.failed, failure, some, Kind.FAILED)

    def recovered(self, streak: int) -> Event:
        """Word the end of a streak of failures."""
        return Event(self.name, Severity.INFO, "sweep recovered", "", {"failed_attempts": streak}, Kind.RECOVERED)


def sweeper(  # noqa: PLR0913 - what a sweeper is
    name: str,
    *,
    needs: Mapping[str, tuple[str, ...]],
    settings: type[S],
    wording: Wording,
    counts: tuple[str, ...] = (),
    fails_by: str = "",
    outside: Callable[[S], Outside] | None = None,
) -> Callable[[Callable[[Batch[S]], Mapping[str, int]]], Sweeper[S]]:
    """Declare the decorated function as the sweeper `name`.

    The function does one batch in a transaction that is already open, and returns how many rows it `changed`,
    with further numbers under the names in `counts`. `needs` maps the api's tables that it touches, the swept one
    first, to the privileges that it must have on them. A run in which the count `fails_by` is not zero has failed.
    `outside` makes what a run does between two transactions; the batch finds it as `batch.outside`.
    `name` is a lock key, a metric label and a log word: renaming it is a breaking change.
    """

    def declare(batch: Callable[[Batch[S]], Mapping[str, int]]) -> Sweeper[S]:
        return Sweeper(name, needs, settings, wording, batch, counts, fails_by, outside)

    return declare
