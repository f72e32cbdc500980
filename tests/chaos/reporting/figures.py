"""What a round came to, in numbers: the columns of the table, each from what the checks found or from the history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tests.chaos.checks.gaps import worst_recovery
from tests.chaos.checks.notifications import repeats

if TYPE_CHECKING:
    from tests.chaos.checks.violation import Violation
    from tests.chaos.history import Change
    from tests.chaos.playing import Played

#: Words by which a finding is told from another of the same check.
_TWICE = ("run twice", "had done it")
_UNCOVERED = ("without a run",)
_DOUBLED = (" again after ", " times")


@dataclass(frozen=True)
class Figures:
    """Numbers of one round; all but the first six, the repeats and the recovery are to be 0."""

    #: Faults that had an effect.
    effects: int
    #: Slots that were claimed by runs that did not fail, or covered by these; runs that have succeeded, also where a
    #: clock that was put right has made them forgotten since; and slots that were covered.
    slots: int
    runs: int
    covered: int
    #: Events that were committed, and requests that receivers have taken.
    events: int
    received: int
    duplicates: int
    token_regressions: int
    uncovered: int
    early_deletes: int
    lost: int
    doubled: int
    #: All else that the checks found.
    other: int
    #: Requests that a receiver had taken before, under the same id, because its answer was lost.
    repeats: int
    #: The longest that a sweeper took to go on, seconds; whose, and after which fault.
    worst_recovery: float
    worst_of: str
    worst_after: str

    def as_json(self) -> dict[str, Any]:
        """Return them by name."""
        return asdict(self)


def figures(played: Played) -> Figures:
    """Return the numbers of a round."""
    history = played.history
    newest = {change.after["id"]: change.after for change in history.changes if _of_a_run(change)}
    served = [run for run in newest.values() if run["outcome"] != "failure"]
    done = {change.after["id"] for change in history.changes if _of_a_run(change, "success")}
    found = Counter(_column(violation) for violation in played.violations)
    worst = worst_recovery(history)
    return Figures(
        effects=sum(kinds(played.effects).values()),
        slots=len(served) + sum(run["covered"] for run in served),
        runs=len(done),
        covered=sum(run["covered"] for run in served),
        events=len(history.events),
        received=len(history.received),
        duplicates=found["duplicates"],
        token_regressions=found["token_regressions"],
        uncovered=found["uncovered"],
        early_deletes=found["early_deletes"],
        lost=found["lost"],
        doubled=found["doubled"],
        other=found["other"],
        repeats=repeats(history),
        worst_recovery=round(worst.seconds, 1),
        worst_of=worst.name,
        worst_after=worst.after,
    )


def _of_a_run(change: Change, *outcomes: str) -> bool:
    """Return whether a change has written a row of the ledger, with one of these outcomes, or any."""
    written = change.relation == "sweep_run" and change.op != "delete"
    return written and (not outcomes or change.after["outcome"] in outcomes)


def kinds(effects: Mapping[str, int]) -> dict[str, int]:
    """Return the effects by kind; what is counted once more in detail ("kill: worker") is left out."""
    return {kind: times for kind, times in sorted(effects.items()) if ": " not in kind}


def _column(violation: Violation) -> str:
    """Return the column that a finding counts in."""
    check, text = violation
    if check == "slots":
        return "duplicates" if _any(_TWICE, text) else "uncovered" if _any(_UNCOVERED, text) else "other"
    if check == "notifications":
        return "doubled" if _any(_DOUBLED, text) else "lost"
    columns = {"tokens": "token_regressions", "fencing": "token_regressions"}
    return {**columns, "due": "early_deletes", "renewed": "early_deletes"}.get(check, "other")


def _any(words: Iterable[str], text: str) -> bool:
    return any(word in text for word in words)
