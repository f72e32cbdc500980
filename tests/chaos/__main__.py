"""`python -m tests.chaos`: plays rounds, says what was found, and ends with 1 if that is anything.

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
from pathlib import Path

from tests.chaos.playing import Played, play
from tests.chaos.reporting.report import lines, write
from tests.chaos.rounds import ROUNDS
from tests.chaos.variants.proving import prove_all


def main() -> int:
    """Play the rounds that are asked for and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--round", dest="rounds", action="append", choices=sorted(ROUNDS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults strike in a round (60)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000), help="for the faults")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write a JSON document of each round")
    parser.add_argument("--variants", action="store_true", help="prove the checks, by builds that have a defect each")
    given = parser.parse_args()
    if given.variants:
        return int(not all(proof.found for proof in prove_all(lambda line: print(line, flush=True))))
    played: list[Played] = []
    for name in given.rounds or ROUNDS:
        print(f"round {name}: {ROUNDS[name].text}; SEED={given.seed} for {given.seconds:.0f} s", flush=True)
        done = play(
            ROUNDS[name],
            seed=given.seed,
            seconds=given.seconds,
            timed=True,
            progress=lambda line: print("  " + line, flush=True),
        )
        print("\n".join(lines(done)), flush=True)
        if given.out is not None:
            write(given.out, done)
        played.append(done)
    return int(not all(done.passed for done in played))


if __name__ == "__main__":
    sys.exit(main())
