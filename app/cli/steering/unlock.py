"""`sb-worker unlock`: a lock that nobody gives back."""

from __future__ import annotations

import sys
from datetime import timedelta

import click

from app.cli.help import examples
from app.cli.names import SWEEPER
from app.cli.steering.operator import ledger, moment, settings_of
from app.core.values import format_duration
from app.storage.redis import connect
from app.sweeping.unlocking import Held, Holder, Unlocking, holder

#: How long a call to Redis may take.
_ANSWER_WITHIN = timedelta(seconds=2)


@click.command(
    "unlock",
    short_help="Show a sweeper's lock, and take it away.",
    epilog=examples("sb-worker unlock wraps-expired", "sb-worker unlock wraps-expired --yes"),
)
@click.argument("name", type=SWEEPER)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also while a run seems to hold it.")
def unlock_command(name: str, yes: bool, force: bool) -> None:
    """Show the lock of the sweeper NAME, and delete it before its time.

    Hardly ever needed: the lock of a worker that is gone ends by itself within a lease. It is for a lock that somebody
    else has made, or one without an end. A run whose lock is deleted stops, and commits nothing more once another one
    has begun.
    """
    loaded, _, _ = settings_of(name)
    locks = Unlocking(connect(loaded.redis, answer_within=_ANSWER_WITHIN), loaded.redis.namespace)
    held = locks.look(name)
    if held is None:
        click.echo(f"{name}: its lock is free")
        return
    with ledger(loaded.database) as connection:
        run = holder(connection, name)
    click.echo(f"{name}: {_description(held)}")
    if run is not None:
        click.echo(f"{name}: {_running(run)}")
    if run is not None and not force:
        _refuse(
            "error: a run of ours seems to hold it. If that worker is gone, its lock ends by itself. --force deletes "
            "it: a run that still goes on stops at its next step, what it had committed is kept, and the next run "
            "reports it"
        )
    if not yes:
        if not sys.stdin.isatty():
            _refuse("error: nobody is there to be asked; --yes deletes it without asking")
        click.confirm(f"Delete the lock of {name}?", abort=True)
    if not locks.delete(name, held):
        _refuse(f"error: {name}: it is not this lock any more, and nothing was deleted; look again")
    click.echo(f"{name}: its lock is deleted; the next tick may take it")


def _description(held: Held) -> str:
    unknown = "without an end" if held.endless else "with an end that is not known"
    ends = unknown if held.left is None else f"for {format_duration(held.left)} if not renewed"
    if held.kind != "string":
        return f"held by a {held.kind}, which no worker writes, {ends}"
    return f"held by {held.shown}..., {ends}" if held.token else f"held by an empty value, {ends}"


def _running(run: Holder) -> str:
    asked = f", asked for by {run.requested_by}" if run.requested_by else ""
    return f"the ledger has a run by {run.worker} since {moment(run.started_at)}{asked} that has not ended"


def _refuse(text: str) -> None:
    click.echo(text, err=True)
    sys.exit(1)
