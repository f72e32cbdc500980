"""`sb-worker sweep`: one run now, or what one would change."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import click

from app.cli.help import examples
from app.cli.names import SWEEPER
from app.cli.steering.operator import ledger, moment, refuse_off, settings_of, who
from app.cli.terminal import Terminal
from app.cli.values import Length
from app.core.errors import LeaseLost, NotDue, Reason, SweepFailed
from app.core.values import format_duration
from app.sweeping import by_hand, dry_run
from app.sweeping.steering import brake, pauses
from app.sweeping.steering.order import Order
from app.sweeping.unlocking import holder

if TYPE_CHECKING:
    from app.cli.steering.session import Session
    from app.sweeping.run_state import RunState
    from app.sweeping.sweeper import Sweeper, SweeperSettings


@click.command(
    "sweep",
    short_help="Run a sweeper now, or say what it would change.",
    epilog=examples("sb-worker sweep wraps-expired --dry-run", "sb-worker sweep wraps-expired"),
)
@click.argument("name", type=SWEEPER)
@click.option("--dry-run", is_flag=True, help="Only say what a run would change now.")
@click.option("--paused", "despite_pause", is_flag=True, help="Run it although it is paused.")
@click.option("--approve", is_flag=True, help="Run it although its brake holds it.")
@click.option("--wait", type=Length(zero=True), default="30s", show_default=True, help="How long to wait for its lock.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sweep_command(  # noqa: PLR0913, PLR0917 - a command's options
    name: str, dry_run: bool, despite_pause: bool, approve: bool, wait: timedelta, as_json: bool
) -> None:
    """Run the sweeper NAME once, now: under the lock, fence and ledger that every run has.

    Ctrl-C ends the run after its step; what is left is the next run's. A dry run does the sweeper's own statements in a
    transaction that is rolled back, 10,000 rows or 2s of them at most; it takes no lock and writes nothing.
    """
    if dry_run and (despite_pause or approve):
        raise click.UsageError("a dry run is held by nothing; leave --paused and --approve out")
    loaded, sweeper, settings = settings_of(name)
    refuse_off(sweeper, settings)
    if dry_run:
        with ledger(loaded.database) as connection:
            _dry(connection, sweeper, settings, as_json)
        return
    from app.cli.steering.session import Session  # noqa: PLC0415 - it loads Dramatiq, for this command alone

    order = Order(who(), despite_pause, approve)
    with Session(loaded) as session, session.stops.heard():
        _sweep(session, sweeper, settings, order, wait, as_json=as_json)


def _sweep(  # noqa: PLR0913 - what the command was given
    session: Session,
    sweeper: Sweeper[Any],
    settings: SweeperSettings,
    order: Order,
    wait: timedelta,
    *,
    as_json: bool,
) -> None:
    name, stops = sweeper.name, session.stops
    tick = by_hand.acquire(
        session.locks,
        sweeper,
        settings,
        order,
        wait=wait,
        on_held=lambda: _tell_held(session, name, wait),
        stopping=lambda: stops.asked,
    )
    if tick is None and stops.asked:
        _end(f"{name}: stopped while it waited for its lock; nothing was run", stops.status)
    if tick is None:
        _end(
            f"error: {name} was not run, its lock was held for {format_duration(wait)}; --wait waits longer, "
            f"`sb-worker unlock {name}` shows the lock"
        )
    try:
        with _progress(session, name):
            state = by_hand.run(session.locks, session.runner, sweeper, settings, tick)
    except NotDue as error:
        _end(_not_due(session, sweeper, settings, error.reason))
    except LeaseLost:
        _end(f"error: {name} has lost its lock; what it had committed is kept, and the next run reports it")
    except SweepFailed as error:
        if stops.cut:
            _end(f"{name}: stopped in the middle of a step, which is undone; its slot is free again", stops.status)
        _end(f"error: {name} failed: {error}; what was committed before is kept, and its slot is free again")
    _report(name, state, as_json)
    if stops.asked and state.handed_over:
        _end(f"{name}: stopped; the next run goes on from here", stops.status)


def _tell_held(session: Session, name: str, wait: timedelta) -> None:
    with session.pool.connection() as connection:
        run = holder(connection, name)
    by = "somebody who is no run of ours"
    if run is not None:
        asked = f", asked for by {run.requested_by}" if run.requested_by else ""
        by = f"{run.worker}, as far as the ledger knows, since {moment(run.started_at)}{asked}"
    click.echo(f"{name}: its lock is held by {by}; waiting for {format_duration(wait)} at most", err=True)


@contextmanager
def _progress(session: Session, name: str) -> Iterator[None]:
    """Show on a terminal how far the run has come."""
    console = Terminal(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(f"{name}: it begins") as line:

        def show(state: RunState) -> None:
            line.update(f"{name}: {state.sweep.changed:,} changed in {state.transactions:,} transactions")

        session.runner.on_progress = show
        yield


def _not_due(session: Session, sweeper: Sweeper[Any], settings: SweeperSettings, reason: Reason) -> str:
    name = sweeper.name
    if reason is Reason.TABLE_MISSING:
        return f"error: {name} rests, the api's {sweeper.rests_without(settings)} is not there"
    if reason is Reason.PAUSED:
        with session.pool.connection() as connection:
            pause = pauses.current(connection).get(name)
        why = f" by {pause.paused_by} until {moment(pause.until)}: {pause.reason}" if pause else ""
        return f"error: {name} is paused{why}; --paused runs it all the same"
    if reason is Reason.BRAKED:
        with session.pool.connection() as connection:
            held = brake.held(connection, name)
        return f"error: {name} is braked{f': {held.text}' if held else ''}; --approve runs it all the same"
    return f"error: {name} was run by others at this very moment, again and again; nothing was run by hand"


def _report(name: str, state: RunState, as_json: bool) -> None:
    sweep, claimed = state.sweep, state.claimed
    if as_json:
        counts = {**sweep.counts, "changed": sweep.changed}
        run = {"sweeper": name, "run": claimed.run, "covered": claimed.claim.covered, "handed_over": state.handed_over}
        click.echo(json.dumps({**run, **counts}))
        return
    click.echo(f"{name}: {_numbers(sweep.changed, dict(sweep.counts))}")
    if claimed.claim.covered:
        click.echo(f"{name}: covers {claimed.claim.covered:,} slots that nobody ran")
    if state.handed_over:
        click.echo(f"{name}: not all is done; the next run goes on from here")


def _dry(connection: Any, sweeper: Sweeper[Any], settings: SweeperSettings, as_json: bool) -> None:
    name = sweeper.name
    try:
        found = dry_run.look(connection, sweeper, settings)
    except NotDue:
        _end(f"error: {name} rests, the api's {sweeper.rests_without(settings)} is not there")
    except SweepFailed as error:
        _end(f"error: {name} would fail: {error}")
    if as_json:
        since = found.since.isoformat() if found.since else None
        shown = {"changed": found.changed, "at_least": found.more, "due_since": since, **found.counts}
        click.echo(json.dumps({"sweeper": name, "dry_run": True, **shown}))
        return
    least = "at least " if found.more else ""
    click.echo(f"{name}: a run would have {least}{_numbers(found.changed, dict(found.counts))}; nothing was changed")
    if found.since:
        click.echo(f"{name}: the oldest has been due since {moment(found.since)}")


def _numbers(changed: int, counts: dict[str, int]) -> str:
    return ", ".join([f"{changed:,} changed", *(f"{word} {number:,}" for word, number in counts.items() if number)])


def _end(text: str, status: int = 1) -> NoReturn:
    click.echo(text, err=True)
    sys.exit(status)
