"""`python -m tests.soak` runs a deployment at ten times its usual rates; status 1 says that something grows."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.soak import report
from tests.soak.deployment import Deployment
from tests.soak.leaking import LEAKS
from tests.soak.operator import Operator
from tests.soak.rates import cadences
from tests.soak.watching import Watch


def main(words: Sequence[str] | None = None) -> int:
    """Soak, and return the exit status: 0 nothing grows and all was done, 1 otherwise."""
    asked = _arguments(words)
    asked.out.mkdir(parents=True, exist_ok=True)
    every = ", ".join(f"{name} {every.total_seconds():g}s" for name, every in cadences().items())
    _say(f"each replica runs: {every}")
    with tempfile.TemporaryDirectory(prefix="sb-soak-") as name:
        directory = Path(name)
        with Deployment(directory, asked.leak) as deployment, Operator(deployment) as operator:
            deployment.sql.execute("SELECT setseed(%s)", [random.Random(asked.seed).random()])
            watch = Watch(deployment, operator, asked.out, asked.every)
            watch.run(60 * asked.minutes, _say)
            problems = list(watch.missing())
    judgements = report.judged(watch.series, watch.units)
    report.write(asked.out, judgements, watch.units, problems)
    _say((asked.out / "table.txt").read_text(encoding="utf-8"))
    return int(bool(problems) or any(judgement.verdict == "grows" for judgement in judgements.values()))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="how long; memory is judged from 30 on (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the load (%(default)s)")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two samples (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("soak"), help="folder for samples and verdicts (%(default)s)")
    parser.add_argument("--leak", choices=LEAKS, default="", help="have each worker leak this, a piece a run")
    return parser.parse_args(words)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
