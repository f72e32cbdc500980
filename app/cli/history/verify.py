"""`sb-worker verify`: the ledger read as a checker reads a history, by arithmetic of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import click
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from actors import SWEEPERS
from app.cli.help import examples
from app.cli.history.past import output_option, past, since_option
from app.cli.terminal import Terminal
from app.overview.history import verifying
from app.overview.history.findings import Findings
from app.overview.history.live_locks import live_locks
from app.overview.history.transaction import looking_back
from app.overview.history.verifying import Known
from app.overview.history.wording import length
from app.worker.loading import Loaded

_COLUMNS = ("slots", "runs", "covered", "waiting", "faults")


@click.command(
    "verify",
    short_help="Check by the ledger that each slot was run once, or covered.",
    epilog=examples(
        "sb-worker verify                 the last 24 hours",
        "sb-worker verify --since 168h    all that the ledger keeps by default",
        "sb-worker verify -o json | jq '.wrong[]'",
    ),
)
@since_option("24h")
@output_option("table")
def verify(window: timedelta, form: str) -> None:
    """Check that each slot of each sweeper was run exactly once, or covered, by what the ledger says.

    It counts the slots itself, changes nothing, and works beside everything else. Status 1 when something is wrong,
    with the slots.

    \b
    once     a slot has one successful run, and none after that of a newer one
    every    a slot has a run, or a later run that covers it
    covered  a run covers no more slots than have none
    tokens   each claim has a higher fencing token than the one before
    overlap  no run commits after its successor has begun
    running  a run that is under way is somebody's
    counts   the numbers and times of a row fit its outcome
    """  # noqa: D301 - click wants the character itself
    with past() as (loaded, connection):
        known = _known(loaded)
        with looking_back(connection) as cursor, _progress() as progress:
            found = verifying.verify(cursor, known, window, progress)
    if form == "json":
        for findings in found:
            click.echo(json.dumps(findings.as_json()))
    else:
        Terminal(soft_wrap=True).print(
            _table(found), *_lines(found), _verdict(found, window), sep="\n", highlight=False
        )
    sys.exit(any(findings.faults for findings in found))


def _known(loaded: Loaded) -> Known:
    pairs = list(zip(SWEEPERS, loaded.sweepers, strict=True))
    locks = live_locks(loaded.redis, [sweeper.name for sweeper in SWEEPERS])
    on = {sweeper.name for sweeper, settings in pairs if settings.enabled}
    return Known(
        {sweeper.name: settings.tick for sweeper, settings in pairs if settings.enabled},
        enabled=on.__contains__,
        lease=loaded.worker.lease,
        held=lambda name: None if locks is None else name in locks,
    )


@contextmanager
def _progress() -> Iterator[Any]:
    """Yield what shows on a terminal how far the reading is; nothing elsewhere."""
    with Progress(console=Terminal(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("reading the ledger")
        yield lambda done, of: progress.update(task, completed=done, total=of)


def _table(found: Sequence[Findings]) -> Table:
    table = Table("sweeper", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for findings in found:
        numbers = [getattr(findings, heading) for heading in _COLUMNS]
        style = "bold red" if findings.faults else "yellow" if findings.waiting else ""
        table.add_row(Text(findings.name, style), *(f"{number:,}" for number in numbers))
    return table


def _lines(found: Iterable[Findings]) -> Iterator[Text]:
    for findings in found:
        for fault in findings.kept:
            yield Text(f"{findings.name}: {fault.check}: slot {fault.slot:%Y-%m-%d %H:%M:%S}: {fault.text}", "red")
        if (more := findings.faults - len(findings.kept)) > 0:
            yield Text(f"{findings.name}: and {more:,} more", "red")
        numbers = {
            "taken over from runs that were interrupted": findings.taken_over,
            "failed attempts": findings.failed,
            "runs by hand": findings.by_hand,
        }
        for text in (*(f"{number:,} {what}" for what, number in numbers.items() if number), *findings.notes):
            yield Text(f"{findings.name}: {text}", "dim")


def _verdict(found: Sequence[Findings], window: timedelta) -> Text:
    faults, slots = sum(findings.faults for findings in found), sum(findings.slots for findings in found)
    if faults:
        return Text(
            f"{faults:,} fault{'s' * (faults != 1)} in {slots:,} slots of the last {length(window)}", "bold red"
        )
    if not slots:
        return Text(
            f"no run in the last {length(window)}: nothing to check; `sb-worker status` has the sweepers", "yellow"
        )
    waiting = sum(findings.waiting for findings in found)
    rest = f", but for {waiting:,} that wait for the next run" if waiting else ""
    return Text(
        f"consistent: each of {slots:,} slots of the last {length(window)} was run once or covered{rest}", "green"
    )
