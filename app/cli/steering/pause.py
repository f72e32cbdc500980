"""`sb-worker pause` and `resume`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import timedelta

import click
from rich.table import Table

from actors import SWEEPERS
from app.cli.help import examples
from app.cli.names import SWEEPER_OR_ALL
from app.cli.steering.operator import chosen, ledger, moment, who
from app.cli.terminal import Terminal
from app.cli.values import Length, OneLine
from app.core.logging import configure_logging
from app.storage.settings import DatabaseSettings
from app.sweeping.steering import pauses
from app.sweeping.steering.pauses import LONGEST, MOST_REASON, Pause


@click.command(
    "pause",
    short_help="Have a sweeper begin no run for a while.",
    epilog=examples("sb-worker pause wraps-expired --for 2h --reason 'restoring a backup'", "sb-worker pause"),
)
@click.argument("name", type=SWEEPER_OR_ALL, required=False)
@click.option("--for", "length", type=Length(most=LONGEST), help="For how long, such as 2h; at most 720h.")
@click.option("--reason", type=OneLine(MOST_REASON), help="Why; everybody who asks is told.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as when piped.")
def pause_command(name: str | None, length: timedelta | None, reason: str | None, as_json: bool) -> None:
    """Have the sweeper NAME, or `all`, begin no run for a while; without NAME, list what is paused.

    A run that has begun goes on. The pause ends by itself, or by `sb-worker resume`; the run after it covers what was
    missed. No secret belongs into the reason: it is shown to everybody.
    """
    if name is None and (length is not None or reason is not None):
        raise click.UsageError("which sweeper? give its NAME, or all")
    if name is not None and (length is None or reason is None):
        raise click.UsageError("a pause needs --for and --reason")
    configure_logging("error")
    with ledger(DatabaseSettings.read()) as connection:
        if name is None or length is None or reason is None:
            _show(pauses.current(connection).values(), as_json)
            return
        paused = pauses.pause(connection, chosen(name), length, who(), reason)
    for pause in paused:
        click.echo(f"{pause.name} is paused until {moment(pause.until)}; `sb-worker resume {pause.name}` ends that")


@click.command(
    "resume",
    short_help="Have a paused sweeper run again.",
    epilog=examples("sb-worker resume wraps-expired", "sb-worker resume all"),
)
@click.argument("name", type=SWEEPER_OR_ALL)
def resume_command(name: str) -> None:
    """Have the sweeper NAME, or `all`, run again from its next tick on."""
    configure_logging("error")
    with ledger(DatabaseSettings.read()) as connection:
        resumed = pauses.resume(connection, chosen(name), who())
    for each in resumed:
        click.echo(f"{each} runs again from its next tick on")
    if not resumed:
        click.echo(f"error: {'no sweeper is' if name == 'all' else f'{name} is not'} paused", err=True)
        sys.exit(1)


def _show(found: Iterable[Pause], as_json: bool) -> None:
    order = {sweeper.name: number for number, sweeper in enumerate(SWEEPERS)}
    rows = sorted(found, key=lambda pause: order.get(pause.name, len(order)))
    if as_json or not sys.stdout.isatty():
        for pause in rows:
            click.echo(json.dumps(pause._asdict(), default=lambda time: time.isoformat()))
        return
    if not rows:
        click.echo("nothing is paused")
        return
    table = Table("sweeper", "since", "until", "by", "reason")
    for pause in rows:
        who_and_why = (pause.paused_by.replace("[", r"\["), pause.reason.replace("[", r"\["))
        table.add_row(pause.name, moment(pause.began_at), moment(pause.until), *who_and_why)
    Terminal().print(table)
