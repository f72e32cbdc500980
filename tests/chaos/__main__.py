"""`python -m tests.chaos`: plays rounds, says what was found, and ends with 1 if that is anything.

It also ends with 1 if a round that was asked for by its name cannot be played here.

    make chaos                          every round for a minute
    make chaos ROUND=kill SECONDS=600   one of them for ten minutes
    make chaos SEED=123 ROUND=kill      the faults of another time once more
    python -m tests.chaos --variants    broken builds, and by which check each of them is found

All traffic stays on the loopback interface. A round ends by itself, and everything that it started with it.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.chaos import preload
from tests.chaos.playing import Played, play
from tests.chaos.reporting.report import lines, write
from tests.chaos.rounds import ROUNDS, without_gcc
from tests.chaos.variants.proving import prove_all


def main(words: Sequence[str] | None = None) -> int:
    """Play the rounds that are asked for and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--round", dest="rounds", action="append", choices=sorted(ROUNDS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults strike in a round (60)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000), help="for the faults")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write a JSON document of each round")
    parser.add_argument("--variants", action="store_true", help="prove the checks, by builds that have a defect each")
    given = parser.parse_args(words)
    if given.variants:
        return int(not all(proof.found for proof in prove_all(lambda line: print(line, flush=True))))
    played: list[Played] = []
    left_out: list[str] = []
    for name in given.rounds or ROUNDS:
        made = ROUNDS[name] if preload.GCC else without_gcc(ROUNDS[name])
        if made is None:
            print(f"round {name}: not played: needs gcc", flush=True)
            left_out.append(name)
            continue
        print(f"round {name}: {made.text}; SEED={given.seed} for {given.seconds:.0f} s", flush=True)
        done = play(
            made,
            seed=given.seed,
            seconds=given.seconds,
            timed=True,
            progress=lambda line: print("  " + line, flush=True),
        )
        print("\n".join(lines(done)), flush=True)
        if given.out is not None:
            write(given.out, done)
        played.append(done)
    passed = [done.name for done in played if done.passed]
    print("\n".join(_summary(played, passed, left_out)), flush=True)
    return int(len(passed) < len(played) or bool(given.rounds and left_out))


def _summary(played: Sequence[Played], passed: Sequence[str], left_out: Sequence[str]) -> Iterator[str]:
    failed = [done.name for done in played if not done.passed]
    for names, what in ((passed, "passed"), (failed, "FAILED"), (left_out, "not played: needs gcc")):
        if names:
            yield f"{what}: {', '.join(names)}"


if __name__ == "__main__":
    sys.exit(main())
