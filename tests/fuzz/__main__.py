"""`python -m tests.fuzz [target ...] [--seconds N] [--seed N]`: each target under atheris, one after the other.

Exit status 0 when all held, 1 when one did not (its input is printed, and the command that tries it again), 2 when this
cannot be run.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from importlib.util import find_spec

from tests.fuzz.child import found
from tests.fuzz.running import Outcome, run
from tests.fuzz.targets import TARGETS

MISSING = """\
atheris is not installed: it has wheels for Linux on x86_64, and Python 3.11 to 3.13.
Install what is locked for it into the environment of the tests:
  .venv/bin/python -m pip install --require-hashes --requirement requirements/fuzz.txt
The same properties run in the suite, by Hypothesis: pytest tests/fuzz"""


def main() -> int:
    """Run what is asked for and return the exit status."""
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the worker.")
    parser.add_argument("targets", nargs="*", metavar="target", help=f"all by default; there are: {', '.join(names)}")
    parser.add_argument("--seconds", type=int, default=60, help="time for each target (60)")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzer's choices; a new one by default")
    parser.add_argument("--input", metavar="BASE64", help="try this one input of one target, as a find has printed it")
    asked = parser.parse_args()
    if unknown := sorted(set(asked.targets) - set(names)):
        parser.error(f"no target is called {', '.join(unknown)}; there are: {', '.join(names)}")
    if asked.seconds < 1:
        parser.error("--seconds takes 1 or more")
    if asked.input is not None and len(asked.targets) != 1:
        parser.error("--input is of one target")
    if find_spec("atheris") is None:
        print(MISSING, file=sys.stderr)
        return 2
    seed = asked.seed or secrets.randbelow(2**31 - 1) + 1
    outcomes = [run(found(name), asked.seconds, seed, asked.input) for name in asked.targets or names]
    if asked.input is None:
        _sum_up(outcomes, seed)
    return int(any(outcome.crashed for outcome in outcomes))


def _sum_up(outcomes: list[Outcome], seed: int) -> None:
    print(f"\n{'target':<20}{'executions':>12}{'exec/s':>9}{'coverage':>10}{'features':>10}{'peak RSS':>10}  outcome")
    for one in outcomes:
        numbers = (
            f"{one.executions:>12,}{one.rate:>9,}{one.coverage:>10,}{one.features:>10,}{f'{one.peak_mib} MiB':>10}"
        )
        print(f"{one.name:<20}{numbers}  {one.crashed or 'held'}")
    print(f"seed {seed}")


if __name__ == "__main__":
    sys.exit(main())
