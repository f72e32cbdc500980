"""Every measurement of the table: ours beside the best that this machine can do in the same run.

Both are done by turns, and what counts are ratios: they stay when the machine is busy, where absolute figures do not.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console

from app.core.logging import configure_logging
from bench import report, results
from bench.measurement import Measurement, NotHere, Size
from bench.measures import MEASUREMENTS
from bench.results import BEFORE, NOW, RESULTS, Result

#: Rounds, and the seconds after which a measurement begins no further one.
ROUNDS, QUICK_ROUNDS = 5, 2
SECONDS, QUICK_SECONDS = 40.0, 5.0
_EPILOG = """
examples:
  python -m bench                              everything, below 25 minutes on two cores
  python -m bench --quick                      everything, small, below 5 minutes
  python -m bench --list                       the measurements
  python -m bench --only sweep-local tick      those whose names begin so
  python -m bench --full --only tick-nothing   with 5,000,000 rows in place of 1,000,000
  python -m bench --report                     tables and plots anew, from the results that there are

It writes bench/results/now/NAME.json (every round, versions, machine), and from those and the ones in
bench/results/before the table bench/results/table.md, plots beside it, and the tables in docs/performance.md and
docs/scale.md. --quick is for a look: it writes to bench/results/quick, which git does not keep, and nothing else.

All traffic stays on the loopback interface, and all processes end with the run, also when it is interrupted. Nothing
is judged: a figure that misses its goal is a row of the table.
"""


def main() -> None:
    """Take measurements and write what they have found."""
    given = _parse()
    if given.list:
        for measurement in MEASUREMENTS:
            print(f"{measurement.name:22} {measurement.what}")
        return
    configure_logging("error")
    console = Console(stderr=True, highlight=False)
    into = RESULTS / ("quick" if given.quick else given.into)
    failed = 0 if given.report else _take_all(given, into, console)
    now, beside = (into, into) if given.quick else (RESULTS / NOW, RESULTS)
    for path in report.write(MEASUREMENTS, before=RESULTS / BEFORE, now=now, beside=beside, docs=not given.quick):
        console.print(f"wrote {path.relative_to(results.ROOT)}")
    sys.exit(failed > 0)


def _take_all(given: argparse.Namespace, into: Path, console: Console) -> int:
    """Take the measurements that are asked for; return how many could not be."""
    chosen = [measurement for measurement in MEASUREMENTS if measurement.name.startswith(tuple(given.only))]
    failed, started = 0, time.monotonic()
    for number, measurement in enumerate(chosen, 1):
        begun = time.monotonic()
        title = f"[bold]{measurement.name}[/] ({number} of {len(chosen)})"
        try:
            result = _take(measurement, given, console, title)
        except NotHere as missing:
            console.print(f"{title}: left out, {missing}")
        except Exception:  # noqa: BLE001 - one that fails says so, and the others are taken
            failed += 1
            console.print(f"{title}: failed")
            console.print_exception()
        else:
            results.save(result, into)
            took = f"{len(result.rounds)} rounds, {time.monotonic() - begun:.0f} s"
            console.print(f"{title}, {took}: {report.line(measurement, result)}")
    console.print(f"{len(chosen)} measurements in {time.monotonic() - started:.0f} s")
    return failed


def _take(measurement: Measurement, given: argparse.Namespace, console: Console, title: str) -> Result:
    machine, taken = results.machine(), results.now()  # how busy it is before
    size = Size(quick=given.quick, full=given.full)
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    with console.status(title) as status:
        found = measurement.alternate(
            size,
            rounds,
            given.seconds or (QUICK_SECONDS if given.quick else SECONDS),
            lambda text: status.update(f"{title}: {text}"),
        )
    name = "quick" if given.quick else "full" if given.full else "usual"
    return Result(measurement.name, name, taken, results.revision(), machine, results.versions(), found)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="measurements whose names begin so")
    parser.add_argument("--quick", action="store_true", help="few rows, two rounds: for a look")
    parser.add_argument("--full", action="store_true", help="the largest tables")
    parser.add_argument("--rounds", type=int, help=f"rounds of each measurement (default: {ROUNDS})")
    parser.add_argument(
        "--seconds", type=float, help=f"begin no further round of a measurement after so many (default: {SECONDS:g})"
    )
    parser.add_argument("--into", default=NOW, choices=(NOW, BEFORE), help="which set of results to write")
    parser.add_argument("--report", action="store_true", help="measure nothing, write tables and plots anew")
    parser.add_argument("--list", action="store_true", help="list the measurements")
    return parser.parse_args()


if __name__ == "__main__":
    main()
