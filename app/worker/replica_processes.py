"""The metrics `process_*` of all processes of a replica together, in place of those of the one that is asked."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import Metric, ProcessCollector

_PROC = Path("/proc")
#: What is not added up, and how it is chosen in place of that.
_CHOSEN: dict[str, Callable[[float, float], float]] = {"process_start_time_seconds": min, "process_max_fds": min}
_RESIDENT, _CPU = "process_resident_memory_bytes", "process_cpu_seconds"
#: Of proc(5)'s `stat`, counted from the state behind the name: user and system time of the children that were waited
#: for, ticks.
_CHILDRENS_TIMES = slice(13, 15)


class ReplicaProcesses:
    """A Prometheus collector of a process and of all that it has started, and that they have started in turn.

    Resident memory is the proportional set size: pages that several of them share are counted once, as the limit of a
    container counts them. The time that processes took which have ended stays counted: a counter never falls.
    """

    def __init__(self, runner: int) -> None:
        self._runner = runner
        self._cpu = 0.0
        self._asked = 0
        self._one = ProcessCollector(pid=lambda: self._asked, registry=None)

    def collect(self) -> Iterable[Metric]:
        """Return the families, with one number each."""
        families: dict[str, Metric] = {}
        for pid in _family(self._runner):
            for family in self._of(pid):
                if family.name not in families:
                    families[family.name] = family
                    continue
                before, this = families[family.name].samples[0], family.samples[0]
                merge = _CHOSEN.get(family.name, operator.add)
                families[family.name].samples[0] = before._replace(value=merge(before.value, this.value))  # type: ignore[no-untyped-call]
        if _CPU in families:  # a process may end between two looks
            cpu = families[_CPU].samples[0]
            self._cpu = max(self._cpu, cpu.value)
            families[_CPU].samples[0] = cpu._replace(value=self._cpu)
        return families.values()

    def _of(self, pid: int) -> Iterator[Metric]:
        self._asked = pid
        for family in self._one.collect():
            if family.name == _RESIDENT:
                family.samples[0] = family.samples[0]._replace(value=_proportional(pid) or family.samples[0].value)
            elif family.name == _CPU:
                family.samples[0] = family.samples[0]._replace(value=family.samples[0].value + _of_ended_children(pid))
            yield family


def _family(pid: int) -> Iterator[int]:
    """Yield a process and its descendants, as far as the system tells; one that has just ended is left out."""
    yield pid
    with suppress(OSError):
        for children in (_PROC / str(pid) / "task").glob("*/children"):
            for child in children.read_text().split():
                yield from _family(int(child))


def _of_ended_children(pid: int) -> float:
    """Return the processor time of the children that a process has waited for, and of theirs, in seconds."""
    with suppress(OSError):
        times = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[_CHILDRENS_TIMES]
        return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _proportional(pid: int) -> float:
    """Return the proportional set size in bytes, 0 where the system does not tell."""
    with suppress(OSError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024.0
    return 0.0
