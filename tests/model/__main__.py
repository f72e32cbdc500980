"""Explore the claim protocol for longer than the suite does, and print how far that came.

    python -m tests.model [--depth N] [--examples N] [--seed N]

All states of the abstract model to the depth; then so many courses of it on the real code, and so many of free steps,
on servers of their own. Exit status 1, with the course, when one of them breaks a promise; 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
import structlog
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from app.demo.servers import Postgres, Redis
from app.storage import migrations
from tests.model.abstract.moves import Violation
from tests.model.abstract.protocol import Protocol
from tests.model.abstract.search import Explored, explore
from tests.model.stepped.bench import Bench, bench
from tests.model.stepped.course import Differs, play
from tests.model.stepped.machine import Steps
from tests.model.stepped.promises import Broke

#: Moves of a course, and steps of a machine.
MOVES, STEPS = 20, 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Explore, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.model", description="Explore the claim protocol.")
    parser.add_argument("--depth", type=_count, default=8, help="moves of the abstract model (8)")
    parser.add_argument("--examples", type=_count, default=500, help="courses of each kind on the real code (500)")
    parser.add_argument("--seed", type=int, default=1, help="of the courses (1)")
    chosen = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if not _abstract(chosen.depth):
        return 1
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        with Postgres(folder) as postgres, Redis(folder) as redis:
            with psycopg.connect(postgres.url(), autocommit=True) as connection:
                migrations.migrate(connection)
            with bench(postgres.url(), redis.url(), replicas=3) as stepped:
                done = _courses(stepped, chosen.examples, chosen.seed) and _free(stepped, chosen.examples, chosen.seed)
    return 0 if done else 1


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("a whole number from 1 up is expected")
    return int(text)


def _abstract(depth: int) -> bool:
    began = time.monotonic()

    def progress(found: Explored) -> None:
        seconds = time.monotonic() - began
        print(
            f"model: depth {found.depth}: {found.states:,} states, {found.transitions:,} transitions, {seconds:.0f}s",
            flush=True,
        )

    found = explore(Protocol(), depth=depth, progress=progress)
    if found.broken:
        _show(found.broken, found.trace)
    return not found.broken


def _courses(stepped: Bench, examples: int, first: int) -> bool:
    began = time.monotonic()
    for number in range(examples):
        try:
            play(stepped, MOVES, random.Random(first * 1_000_003 + number).randrange)
        except (Differs, Violation) as problem:
            _show(f"course {number} of seed {first}", str(problem).splitlines())
            return False
        if (number + 1) % 100 == 0 or number + 1 == examples:
            moves, seconds = (number + 1) * MOVES, time.monotonic() - began
            print(f"model and real code: {number + 1:,} courses, {moves:,} moves, {seconds:.0f}s", flush=True)
    return True


def _free(stepped: Bench, examples: int, first: int) -> bool:
    began = time.monotonic()
    Steps.bench = stepped
    Steps.taken.clear()
    chosen = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    try:
        run_state_machine_as_test(seed(first)(Steps), settings=chosen)
    except Broke as problem:  # Hypothesis has shrunk it, and notes the steps
        _show(str(problem), [line for note in problem.__notes__ for line in note.splitlines()])
        return False
    seconds, waited = time.monotonic() - began, sum(n for what, n in Steps.taken.items() if "waits" in what)
    print(
        f"free steps: {examples:,} courses, {Steps.taken.total():,} steps of {len(Steps.taken)} kinds,"
        f" {waited:,} waits for another replica, {seconds:.0f}s",
        flush=True,
    )
    return True


def _show(problem: str, lines: Sequence[str]) -> None:
    print(f"a promise is broken: {problem}")
    for line in lines:
        print(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
