"""How soon sweeps go on: within interval, lease and a second of a fault's end, as it is seen from outside.

This alone is a matter of time, and is judged where a machine has nothing else to do. Between two successes of a sweeper
the clock starts anew with the end of each fault in which nobody can sweep, and with the beginning of each that hurts
only some: the others are well, and have to take over.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from tests.chaos.fault_log import Fault
from tests.chaos.history import History
from tests.chaos.watch import LOOK_SECONDS

#: Seconds on top of the interval and the lease, and those by which the watch may see two successes late and early.
_GRACE, _LATE = 1.0, 2 * LOOK_SECONDS

#: Faults that no sweeper notices, but for the poller that of ArgoCD; and those of the one sweeper that they name.
_APART = frozenset({"sink", "mute", "argocd", "go"})
_OF_ONE = frozenset({"pause", "unlock"})


class Recovery(NamedTuple):
    """The longest that a sweeper took to go on, seconds."""

    seconds: float
    name: str
    #: What it had to recover from, "" for nothing.
    after: str


def gaps_are_short(history: History) -> Iterator[str]:
    """Yield each sweeper that took longer than is promised."""
    for recovery in recoveries(history):
        most = max(history.cadences[recovery.name]) + history.lease  # the slowest that is rolled out
        if recovery.seconds > most.total_seconds() + _GRACE + _LATE:
            after = f" after {recovery.after}" if recovery.after else ""
            yield f"{recovery.name} went on {recovery.seconds:.1f} s{after}"


def worst_recovery(history: History) -> Recovery:
    """Return the longest of all sweepers."""
    return max(recoveries(history), default=Recovery(0.0, "", ""))


def recoveries(history: History) -> list[Recovery]:
    """Return the longest of each sweeper."""
    began, ended = history.watched
    return [_longest(history, name, began, ended) for name in history.cadences]


def _hurts(fault: Fault, name: str) -> bool:
    """Return whether a fault may keep this sweeper from going on: what is outside of sweeping may not."""
    if fault.kind in _APART:
        return fault.kind == "argocd" and name == "gitops-poller"
    return fault.kind not in _OF_ONE or fault.note == name


def _over(fault: Fault, ended: float) -> float:
    """Return from when on sweepers have to go on. What is apart from sweeping is an outage of the one that it hurts."""
    if not (fault.outage or fault.kind in _APART | _OF_ONE):
        return fault.began
    return fault.ended if fault.ended is not None else ended


def _longest(history: History, name: str, began: float, ended: float) -> Recovery:
    seen = [success.at for success in history.successes if success.name == name and success.at <= ended]
    found = [Recovery(0.0, name, "")]
    for last, following in pairwise([began, *seen, ended]):
        since, after = last, ""
        for fault in history.faults:
            over = _over(fault, ended)
            if fault.began < following and over > since and _hurts(fault, name):
                since, after = min(over, following), fault.kind
        found.append(Recovery(following - since, name, after))
    return max(found)
