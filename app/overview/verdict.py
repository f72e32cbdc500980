"""Judges an overview: what is not as it should be, what mends it, and what it all comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

from app.overview.model import Overview, Problem, Verdict
from app.overview.problems import fleet, servers, sweepers

#: What keeps every sweeper from running: the others of an overview may follow from these.
_CAUSES: tuple[Callable[[Overview], Iterator[Problem]], ...] = (
    servers.servers,
    fleet.missing,
    fleet.silent,
)
_OTHERS: tuple[Callable[[Overview], Iterator[Problem]], ...] = (
    sweepers.held,
    sweepers.failing,
    servers.locked,
    fleet.cadences,
    fleet.clocks,
    sweepers.braked,
    sweepers.behind,
    servers.sinks,
    sweepers.paused,
    sweepers.passes,
    fleet.versions,
    fleet.own_settings,
)


def judge(overview: Overview) -> Overview:
    """Return the overview with its problems, causes first and notes last, and its verdict."""
    known = overview if overview.sweepers else replace(overview, processes=(), sinks=())
    causes = list(servers.servers(overview))
    if overview.sweepers:
        causes = list(chain.from_iterable(find(known) for find in _CAUSES))
    explained = any(not cause.note and cause.subject != "notifier" for cause in causes)
    found = [*causes, *overview.problems, *sweepers.overdue(known, explained=explained)]
    found += chain.from_iterable(find(known) for find in _OTHERS)
    problems = tuple(sorted(found, key=lambda problem: problem.note))
    return replace(overview, problems=problems, verdict=_verdict(overview, problems))


def _verdict(overview: Overview, problems: tuple[Problem, ...]) -> Verdict:
    if not overview.sweepers:
        return Verdict.UNKNOWN
    return Verdict.FINE if all(problem.note for problem in problems) else Verdict.DEGRADED
