"""What a large installation needs, beside what was measured: on paper, from the results that there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from bench.results import Result

_DAY, _MINUTE = 86_400, 60
#: The installation, as docs/scale.md describes it.
WRAPS_A_DAY, PEAK, MILLIONS_ALIVE = 100e6, 4, 100
AGENTS, OBSERVATIONS, ENDPOINTS, REPLICAS = 100_000, 10_000, 50, 20
#: Ticks a second that each scheduler sends with every cadence by default, everything on.
TICKS = 2 / 5 + 1 / 15 + 2 / 30 + 4 / 60 + 2 / 300
#: Seconds that a run of a minute's cadence may take, and those of a slot of polls.
_BUDGET, _POLLS = 30, 15
#: What a replica is given, MiB, and PostgreSQL's connections by default.
_MEMORY = 256
_CONNECTIONS = 100


class Need(NamedTuple):
    """Something that is used up: what is needed of it and what there is, in one unit."""

    what: str
    needed: float
    there: float
    unit: str
    turn: str


class _Figures:
    """Medians of our figures. A KeyError means that one has not been measured."""

    def __init__(self, found: Mapping[str, Result]) -> None:
        self._found = found

    def __call__(self, measurement: str, figure: str) -> float:
        value = self._found[measurement].ours(figure)
        if value is None:
            raise KeyError(figure)
        return value.median

    def cpu_a_million(self) -> float:
        """Return the seconds that a backend needs for a million wraps of which none is due."""
        rows = {"quick": 0.2, "usual": 1.0, "full": 5.0}[self._found["tick-nothing"].size]
        return self("tick-nothing", "backend_cpu") / rows


def _deleting(of: _Figures) -> Need:
    rows = WRAPS_A_DAY / _DAY * PEAK * _MINUTE
    there = of("sweep-local", "rate") * _BUDGET
    return Need("wraps deleted in a run, at the peak", rows, there, "rows", "a shorter `SB_SWEEP_WRAPS_INTERVAL`")


def _log(of: _Figures) -> Need:
    rate = WRAPS_A_DAY / _DAY * PEAK * of("sweep-local", "wal_row") / 2**20
    return Need("WAL of these deletes, at the peak", rate, 50, "MiB/s", "nothing of ours: the inserts write more")


def _finding(of: _Figures) -> Need:
    seconds = MILLIONS_ALIVE * of.cpu_a_million()
    return Need(
        "a tick that reads 100M wraps, no index of ours",
        seconds,
        _BUDGET,
        "s",
        "`deploy/recommended_indexes.sql`; wraps that live for hours, not days",
    )


def _finding_indexed(of: _Figures) -> Need:
    seconds = of("tick-nothing-indexed", "seconds")
    return Need("such a tick with the recommended index", seconds, _BUDGET, "s", "nothing")


def _silence(of: _Figures) -> Need:
    seconds = AGENTS / of("flip-agents", "rate")
    return Need("every agent silent at once", seconds, _BUDGET, "s", "nothing: the next run goes on")


def _polling(of: _Figures) -> Need:
    return Need(
        "observations polled in a slot, by the CPU of one holder",
        OBSERVATIONS,
        _POLLS / (2 * of("poller", "cpu") / 1000),
        "polls",
        "a longer `SB_SWEEP_GITOPS_POLL_INTERVAL`",
    )


def _asking(of: _Figures) -> Need:
    del of
    calls = 2 * OBSERVATIONS / ENDPOINTS / _POLLS
    return Need("calls to one ArgoCD, 50 ms each, 8 at once", calls, 8 / 0.05, "/s", "`SB_WORKER_GITOPS_CONCURRENCY`")


def _telling(of: _Figures) -> Need:
    return Need(
        "deliveries, an event of every tick to 3 sinks",
        TICKS * 3,
        of("deliveries", "rate"),
        "/s",
        "nothing: digests and dedup windows come first; then more notifiers",
    )


def _redis(of: _Figures) -> Need:
    return Need(
        "Redis for 20 replicas at rest",
        REPLICAS * of("idle", "redis_cpu_percent"),
        100,
        "% of its core",
        "fewer replicas: three do as well as twenty",
    )


def _losing(of: _Figures) -> Need:
    spent = REPLICAS * TICKS * of("scale-losers", "losing_cpu") / 10
    return Need("CPU for ticks that others run", spent, 100 * REPLICAS, "% of a core, all", "fewer schedulers")


def _memory(of: _Figures) -> Need:
    return Need("memory of a replica", of("replica", "memory"), _MEMORY, "MiB", "one Dramatiq process for both queues")


def _connecting(of: _Figures) -> Need:
    del of
    text = "`DATABASE_MAX_CONNS=3`, a pooler, fewer replicas: a replica at rest holds two for its probes"
    return Need("connections of 20 replicas whose probes are asked", 2 * REPLICAS, _CONNECTIONS, "", text)


_NEEDS = (
    _deleting,
    _log,
    _finding,
    _finding_indexed,
    _silence,
    _polling,
    _asking,
    _telling,
    _redis,
    _losing,
    _memory,
    _connecting,
)


def table(found: Mapping[str, Result]) -> str:
    """Return what is needed and what there is, the scarcest first; what was not measured is left out."""
    return "| what | needed | there is | used | what an operator turns |\n|---|---|---|---|---|\n" + "".join(
        _rows(found)
    )


def _rows(found: Mapping[str, Result]) -> Iterator[str]:
    of = _Figures(found)
    needs: list[Need] = []
    for find in _NEEDS:
        with suppress(KeyError):
            needs.append(find(of))
    for need in sorted(needs, key=lambda need: -need.needed / need.there):
        amounts = " | ".join(f"{_number(amount)} {need.unit}".strip() for amount in (need.needed, need.there))
        yield f"| {need.what} | {amounts} | {need.needed / need.there:.1%} | {need.turn} |\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
