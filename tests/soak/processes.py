"""What the processes of a replica take, one by one: memory, descriptors by kind, threads, CPU."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

#: Of a Procfile's processes in the order of their start.
ENTRIES = ("worker", "notifier", "scheduler")
#: How the kernel names what a descriptor leads to, and what we call that.
_KINDS = {"socket:": "sockets", "pipe:": "pipes", "anon_inode:": "others"}


class Value(NamedTuple):
    """One number of a sample, with its unit; what is only kept, and not judged, is so named."""

    value: float
    unit: str
    judged: bool = True


Values = Mapping[str, Value]


def named(replica: int, pid: int) -> dict[str, psutil.Process]:
    """Return the processes of a replica by what they are, the runner among them."""
    runner = psutil.Process(pid)
    found = {f"{replica} runner": runner}
    for entry, main in zip(ENTRIES, _children(runner), strict=False):
        below = _children(main)
        found[f"{replica} {entry}{' main' if below else ''}"] = main
        for number, child in enumerate(below, 1):
            found[f"{replica} {entry}{f' {number}' if len(below) > 1 else ''}"] = child
    return found


def look(processes: Mapping[str, psutil.Process]) -> Iterator[tuple[str, Value]]:
    """Yield what each of them takes now; one that is gone yields nothing."""
    for name, process in processes.items():
        with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            yield from ((f"{name}: {what}", value) for what, value in _one(process))


def _one(process: psutil.Process) -> Iterator[tuple[str, Value]]:
    memory = _memory(process.pid)
    kinds = _descriptors(process.pid)
    times = process.cpu_times()
    yield "RSS", Value(memory["Rss:"], "MiB")
    # Of libraries' pages the share depends on whatever else runs on the machine; of anonymous ones on the replica only.
    yield "PSS", Value(memory["Pss:"], "MiB", judged=False)
    yield "anonymous PSS", Value(memory["Pss_Anon:"], "MiB")
    yield "threads", Value(process.num_threads(), "number")
    yield "descriptors", Value(sum(kinds.values()), "number")
    for kind, count in kinds.items():
        yield kind, Value(count, "number", judged=False)
    yield "CPU seconds", Value(times.user + times.system, "s", judged=False)


def _children(process: psutil.Process) -> list[psutil.Process]:
    return sorted(process.children(), key=lambda child: child.pid)


def _memory(pid: int) -> dict[str, float]:
    """Return what the kernel says of a process's memory, MiB; in PSS what is shared is divided by its users."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(number) / 1024 for name, number, *_ in map(str.split, lines)}


def _descriptors(pid: int) -> dict[str, int]:
    found: Counter[str] = Counter({"sockets": 0, "pipes": 0, "files": 0, "others": 0})
    folder = Path(f"/proc/{pid}/fd")
    for entry in os.listdir(folder):  # noqa: PTH208 - names are enough
        with suppress(OSError):  # closed by now
            target = os.readlink(folder / entry)  # noqa: PTH115 - no path, but a name of the kernel's
            found[next((kind for start, kind in _KINDS.items() if target.startswith(start)), "files")] += 1
    return dict(found)
