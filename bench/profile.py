"""Where the time goes: statements, their plans, and Python's functions.

    python -m bench.profile [before|now]

Writes bench/results/profile-now.md. Statements and plans come from pg_stat_statements and auto_explain, of real runs:
that takes a PostgreSQL of the system's with both, since the one from a wheel has neither. Functions come from py-spy,
if that is installed. What is not there is left out, and said. All of it slows down what it looks at: shares count here,
figures are in table.md.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from app.core.logging import configure_logging
from bench import results
from bench.measures.deliveries import Notifiers
from bench.measures.replicas import FOUR
from bench.measures.sweeps import WRAPS, fill, sweep
from bench.world import MEASURED, QUIET, World, world
from tests.support.processes import ROOT, SCHEDULER, WORKER

_LIBRARIES = ("pg_stat_statements", "auto_explain")
_SEEN = {
    "shared_preload_libraries": ",".join(_LIBRARIES),
    "log_line_prefix": "%a|",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_wal": "on",
}
_TOP = """
SELECT calls, total_exec_time, mean_exec_time, rows, shared_blks_hit + shared_blks_read, shared_blks_dirtied, wal_bytes,
       query
  FROM pg_stat_statements JOIN pg_database AS d ON d.oid = dbid
 WHERE datname = current_database()
   AND query !~ 'pg_stat_|pg_current_wal|^SELECT count|^TRUNCATE|^VACUUM|last_slot - interval|slot - id'
 ORDER BY total_exec_time DESC LIMIT 12
"""
_PLANS, _FUNCTIONS, _SECONDS = 3, 12, 10


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default=results.NOW, choices=(results.BEFORE, results.NOW))
    given = parser.parse_args()
    configure_logging("error")
    console = Console(stderr=True, highlight=False)
    path = results.RESULTS / f"profile-{given.name}.md"
    parts = [f"# Profiles\n\nRevision {results.revision()}, {results.now()[:10]}.\n"]
    with console.status("statements and plans"):
        parts += _statements()
    for title, work in (("worker", _worker), ("notifier", _notifier), ("poller", _poller)):
        with console.status(f"py-spy: {title}"):
            parts += work() if shutil.which(_spy()) else [f"\n## {title}\n\npy-spy is not installed.\n"]
    path.write_text("".join(parts), encoding="utf-8")
    console.print(f"wrote {path.relative_to(ROOT)}")


def _programs() -> Path | None:
    """Return the newest of the system's PostgreSQLs that has both extensions."""
    for programs in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        library = programs.parent / "lib"
        if all((library / f"{name}.so").exists() for name in _LIBRARIES):
            return programs
    return None


def _statements() -> Iterator[str]:
    programs = _programs()
    if programs is None:
        yield f"\n## Statements\n\nNo PostgreSQL with {' and '.join(_LIBRARIES)} is here.\n"
        return
    with world(durable=True, settings={**QUIET, **_SEEN}, programs=programs) as here:
        here.sql.execute("CREATE EXTENSION pg_stat_statements")
        for title, rows, doomed in (
            ("A sweep of 200,000 wraps, half expired", 200_000, 1),
            ("A tick that finds nothing among 200,000 wraps", 200_000, 0),
        ):
            fill(here, WRAPS, rows, doomed=doomed)
            offset = here.postgres.log.stat().st_size
            here.sql.execute("SELECT pg_stat_statements_reset()")
            sweep(here, WRAPS)
            yield f"\n## {title}\n\n"
            yield "| calls | total ms | mean ms | rows | pages | dirtied | WAL bytes | statement |\n"
            yield "|---|---|---|---|---|---|---|---|\n"
            top = here.sql.execute(_TOP.encode()).fetchall()
            for row in top:
                yield f"| {' | '.join(_cell(value) for value in row)} |\n"
            yield from _plans(here, offset)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        text = " ".join(value.split()).replace("|", "\\|")
        return f"`{text[:110]}`"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def _plans(here: World, offset: int) -> Iterator[str]:
    """Yield the plan, of middle duration, of each of the statements that took longest in all."""
    with here.postgres.log.open(errors="replace") as log:
        log.seek(offset)
        text = log.read()
    entries = re.findall(rf"^{MEASURED}\|LOG:  duration: ([\d.]+) ms  plan:\n((?:\t.*\n)+)", text, re.MULTILINE)
    plans: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for milliseconds, entry in entries:
        lines = [line.removeprefix("\t") for line in entry.splitlines()]
        begin = next(number for number, line in enumerate(lines) if "(cost=" in line)
        plans[" ".join(" ".join(lines[:begin]).split())].append((float(milliseconds), "\n".join(lines[begin:])))
    heavy = sorted(plans.items(), key=lambda item: -sum(milliseconds for milliseconds, _ in item[1]))
    for query, found in heavy[:_PLANS]:
        milliseconds, plan = sorted(found)[len(found) // 2]
        yield f"\n`{query.removeprefix('Query Text: ')[:110]}` ({len(found)} times, this one {milliseconds} ms):\n\n"
        yield f"```\n{plan}\n```\n"


def _spy() -> str:
    return str(Path(sys.executable).parent / "py-spy")


def _worker() -> Iterator[str]:
    with world() as here, here.process(WORKER, "worker", here.usual(**FOUR)) as worker:
        worker.ready()
        with here.process(SCHEDULER, "scheduler", here.usual(**FOUR)) as scheduler:
            time.sleep(4)
            yield from _functions("worker, four sweeps a second", ["--pid", str(worker.popen.pid), "--subprocesses"])
            scheduler.end()
        worker.end()


def _notifier() -> Iterator[str]:
    with ExitStack() as stack:
        notifiers = Notifiers(stack, 1)
        with tempfile.NamedTemporaryFile() as file:
            spy = _record(["--pid", str(notifiers.pids[0]), "--subprocesses"], file.name)
            ends = time.monotonic() + _SECONDS
            while time.monotonic() < ends:
                notifiers.deliver(1_000)
            spy.wait(60)
            yield from _told("notifier, as many deliveries as it can", Path(file.name).read_text())


def _poller() -> Iterator[str]:
    command = [sys.executable, "-m", "bench.gitops", "500", "50"]
    yield from _functions("poller, `bench.gitops`", ["--", *command])


def _functions(title: str, what: Sequence[str]) -> Iterator[str]:
    with tempfile.NamedTemporaryFile() as file:
        _record(what, file.name).wait(60 + _SECONDS)
        yield from _told(title, Path(file.name).read_text())


def _record(what: Sequence[str], path: str) -> subprocess.Popen[bytes]:
    options = ["--duration", str(_SECONDS), "--rate", "200", "--gil", "--format", "raw", "--output", path]
    return subprocess.Popen(
        [_spy(), "record", *options, *what], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _told(title: str, stacks: str) -> Iterator[str]:
    """Yield which functions were running, and in whose code: samples of threads that use the CPU."""
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";") if not frame.startswith("process ")]
        own[frames[-1]] += int(count)
        for place in {_place(frame) for frame in frames}:
            within[place] += int(count)
    samples = sum(own.values()) or 1
    yield f"\n## Functions: {title}\n\n"
    yield f"{samples} samples of a thread that holds the GIL, of {_SECONDS * 200} in {_SECONDS} s.\n\n"
    yield "| share | in a call of |\n|---|---|\n"
    for place, times in within.most_common(_FUNCTIONS):
        yield f"| {times / samples:.0%} | {place} |\n"
    yield "\n| share | the function itself |\n|---|---|\n"
    for function, times in own.most_common(_FUNCTIONS):
        yield f"| {times / samples:.0%} | `{function}` |\n"


def _place(frame: str) -> str:
    """Return the library or the room that a frame is of."""
    path = frame.rpartition("(")[2].rstrip(")")
    parts = path.split("/")
    if parts[0] in ("app", "actors", "sinks", "bench", "tests"):
        return "/".join(parts[:2])
    return parts[0].removesuffix(".py")


if __name__ == "__main__":
    main()
