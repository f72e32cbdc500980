"""`sb-worker notify` and `sb-worker dead`: sinks and dead letters, by hand."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import click
import psycopg
from rich.table import Table

from actors import SWEEPERS
from app.cli.help import InOrder, examples
from app.cli.names import COMPONENT, SINK, SWEEPER
from app.cli.terminal import Terminal
from app.core import config
from app.core.errors import BootError, ConfigError, Fault, SinkRejected, SinkUnavailable
from app.core.events import Event, Kind, Notification, Severity
from app.core.logging import configure_logging
from app.core.values import parse_duration
from app.notify import dead_letters, routing
from app.notify.dead_letters import DeliveryFilter
from app.notify.delivery.send import attempt
from app.notify.settings import NotificationSettings
from app.notify.sink import SinkSettings
from app.storage import migrations, postgres
from app.storage.settings import DatabaseSettings
from app.worker.loading import Loaded, load, refuse
from sinks import SINKS

if TYPE_CHECKING:
    from psycopg import Connection

_SEVERITY = click.Choice([severity.value for severity in Severity])
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, as when piped.")


@click.group(cls=InOrder, epilog=examples("sb-worker notify test slack", "sb-worker notify log --newer 1h"))
def notify() -> None:
    """Look at notifications and try sinks out."""


@notify.command(
    "test",
    short_help="Send a test notification to one sink, or to each.",
    epilog=examples("sb-worker notify test", "sb-worker notify test slack --severity warn"),
)
@click.argument("sink", type=SINK, required=False)
@click.option("--severity", type=_SEVERITY, default="info", show_default=True)
@_JSON
def test_command(sink: str | None, severity: str, as_json: bool) -> None:
    """Send one test notification to SINK, or to each sink that is configured; needs no PostgreSQL, no Redis.

    One attempt each, marked as a test, past all filters. Status 1 when one of them does not arrive. A sink that was
    switched off and takes it is on again, if PostgreSQL can be reached.
    """
    configure_logging("error")
    common, targets = _sinks()
    chosen = [target for target in targets if sink in (None, target.name, target.sink.name)]
    if not chosen:
        refuse_sink(sink, targets)
    event = Event(
        "notify-test",
        Severity(severity),
        "test notification",
        "sent by hand; nothing has happened",
        {"test": 1},
        Kind.TEST,
    )
    notification = Notification(str(uuid.uuid4()), datetime.now(UTC), event, common.deployment)
    outcomes = asyncio.run(_send_all(chosen, notification, common))
    _enable_those_that_answer(outcome["sink"] for outcome in outcomes if outcome["outcome"] == "delivered")
    _show(outcomes, ("sink", "outcome", "reason", "code", "ms"), as_json)
    if any(outcome["reason"] == Fault.BLOCKED_ADDRESS for outcome in outcomes):
        click.echo("blocked_address: `sb-worker check` says which setting would allow it", err=True)
    sys.exit(any(outcome["outcome"] != "delivered" for outcome in outcomes))


async def _send_all(
    targets: Sequence[routing.Target], notification: Notification, common: NotificationSettings
) -> list[dict[str, Any]]:
    from app.notify.transport import NetworkTransport  # noqa: PLC0415 - only this command needs it

    try:
        transport = NetworkTransport(common)
    except ValueError as error:
        refuse(ConfigError([str(error)]))
    outcomes = []
    for target in targets:
        started = time.perf_counter()
        outcome = {"sink": target.name, "outcome": "delivered", "reason": "", "code": ""}
        try:
            await attempt(target, notification, transport, common.timeout.total_seconds())
        except SinkRejected as error:
            outcome |= {"outcome": "rejected", "reason": error.fault.value, "code": error.code}
        except SinkUnavailable as error:
            outcome |= {"outcome": "unavailable", "reason": error.fault.value, "code": error.code}
        outcomes.append({**outcome, "ms": round((time.perf_counter() - started) * 1000, 1)})
    await transport.close()
    return outcomes


def _enable_those_that_answer(names: Iterable[str]) -> None:
    """Switch sinks on again, if there is a database to do it in."""
    try:
        with postgres.connect(DatabaseSettings.read()) as connection:
            if migrations.installed(connection) >= migrations.VERSION:
                for name in names:
                    _tell_enabled(dead_letters.enable(connection, name))
    except (ConfigError, BootError, psycopg.Error):
        return


def _tell_enabled(names: Iterable[str]) -> None:
    for name in names:
        click.echo(f"{name} is switched on again; what waited for it goes out", err=True)


@notify.command(
    "enable",
    short_help="Switch a sink on again that was switched off.",
    epilog=examples("sb-worker notify enable slack", "sb-worker notify enable email:3f2a9c1b"),
)
@click.argument("sink", type=SINK)
def enable_command(sink: str) -> None:
    """Switch SINK, or one receiver of it, on again after it was switched off; what waited for it goes out."""
    with outbox() as connection:
        names = dead_letters.enable(connection, sink)
    _tell_enabled(names)
    if not names:
        click.echo(f"error: {sink} is not switched off; `sb-worker notify log --sums` has the names", err=True)
        sys.exit(1)


@notify.command(
    short_help="Show which sinks would get an event, and why not others.",
    epilog=examples("sb-worker notify explain --sweeper agents-stale --severity warn"),
)
@click.option(
    "--sweeper", type=SWEEPER, default="wraps-expired", show_default=True, help="The sweeper that the event is of."
)
@click.option("--severity", type=_SEVERITY, default="info", show_default=True)
@click.option("--recovery", is_flag=True, help="The event is the recovery from a failure.")
@_JSON
def explain(sweeper: str, severity: str, recovery: bool, as_json: bool) -> None:
    """Show which sinks would get such an event, and why the others would not."""
    loaded = loaded_settings()
    kind = Kind.RECOVERED if recovery else Kind.FAILED if severity == "error" else Kind.SWEPT
    event = Event(sweeper, Severity(severity), "", kind=kind)
    with outbox(loaded) as connection:
        known, held = dead_letters.targets(connection), dead_letters.held(connection, event)
    routes = routing.Router(loaded.targets).route(event)
    rows = [_explained(route, known.get(route.target.name), held.get(route.target.name)) for route in routes]
    configured = {target.sink.name for target in loaded.targets}
    rows += [
        {"sink": sink.name, "gets it": "no", "why": f"not configured; set {_first_variable(sink)}"}
        for sink in SINKS
        if sink.name not in configured
    ]
    _show(rows, ("sink", "gets it", "why"), as_json)


def _explained(route: routing.Route, known: Mapping[str, Any] | None, held: datetime | None) -> dict[str, str]:
    target = route.target
    if route.filtered_by == "severity":
        why = f"quieter than its minimum, {target.settings.min_severity}"
    elif route.filtered_by == "sweeper":
        why = f"its sweepers are {', '.join(target.settings.sweepers)}"
    else:
        why = ""
    if known and known["muted_until"]:
        because = f": {known['muted_reason']}" if known["muted_reason"] else ""
        until = _utc(known["muted_until"], "%Y-%m-%d %H:%M:%SZ")
        why = why or f"later: muted until {until} by {known['muted_by']}{because}"
    elif known and known["off_fingerprint"] == target.fingerprint:
        probe = f", probed from {_utc(known['off_until'])} on" if known["off_until"] else ""
        why = why or f"switched off ({known['off_reason']}) until its configuration changes{probe}; it waits"
    elif known and known["rests_until"] and known["rests_until"] > known["now"]:
        why = why or f"later: left alone until {_utc(known['rests_until'])}"
    elif held:
        why = why or f"later, if equal to one that was sent: those are held until {_utc(held)}"
    return {"sink": target.name, "gets it": "no" if route.filtered_by else "later" if why else "yes", "why": why}


def _utc(moment: datetime, form: str = "%H:%M:%SZ") -> str:
    """Return a time as text; PostgreSQL hands it out in the session's time zone."""
    return moment.astimezone(UTC).strftime(form)


def _first_variable(sink: routing.AnySink) -> str:
    fields = (name for name in sink.settings.model_fields if name not in SinkSettings.model_fields)
    return config.name_of(sink.settings, next(fields))


def _age(_context: click.Context, _parameter: click.Parameter, value: str | None) -> timedelta | None:
    if value is None:
        return None
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose deliveries."""
    for option in (
        click.option("--sink", "target", type=SINK, help="Of this sink, or this one receiver of it."),
        click.option("--reason", help="That ended, or last failed, for this reason."),
        click.option("--sweeper", "component", type=COMPONENT, help="Of this sweeper."),
        click.option("--older", callback=_age, help="Older than this, such as 1h30m."),
        click.option("--newer", callback=_age, help="Newer than this."),
        click.option("--limit", type=click.IntRange(1), default=100, show_default=True),
    ):
        command = option(command)
    return command


_COLUMNS = (
    *("id", "created_at", "target", "state", "reason", "code", "waits"),
    *("attempts", "component", "severity", "title"),
)


@notify.command("log", epilog=examples("sb-worker notify log --sink slack --newer 1h", "sb-worker notify log --sums"))
@click.option("--state", type=click.Choice(["pending", "sending", "delivered", "digested", "suppressed", "dead"]))
@click.option("--sums", "as_sums", is_flag=True, help="Count by sink, state and reason instead.")
@_filter_options
@_JSON
def log_command(as_sums: bool, as_json: bool, **filters: Any) -> None:
    """Show deliveries, newest first."""
    with outbox() as connection:
        if as_sums:
            _show(dead_letters.sums(connection), ("target", "state", "reason", "number"), as_json)
        else:
            _show(dead_letters.find(connection, DeliveryFilter(**filters)), _COLUMNS, as_json)


@click.group(
    cls=InOrder,
    short_help="List, replay or purge notifications that were given up.",
    epilog=examples("sb-worker dead list", "sb-worker dead replay --all --sink slack"),
)
def dead() -> None:
    """List, show, replay and purge notifications that were given up."""


@dead.command("list", epilog=examples("sb-worker dead list --sink slack --older 1h"))
@_filter_options
@_JSON
def list_command(as_json: bool, **filters: Any) -> None:
    """List dead letters, newest first."""
    with outbox() as connection:
        _show(dead_letters.find(connection, DeliveryFilter(**filters, state="dead")), _COLUMNS, as_json)


@dead.command(short_help="Show all that is known of deliveries, as JSON.", epilog=examples("sb-worker dead show 17 18"))
@click.argument("ids", type=click.IntRange(1, 2**63 - 1), nargs=-1, required=True)
def show(ids: tuple[int, ...]) -> None:
    """Show all that is known of these deliveries, as JSON."""
    with outbox() as connection:
        rows = list(dead_letters.find(connection, DeliveryFilter(ids=ids, limit=len(ids))))
    _show(rows, (), as_json=True)
    if len(rows) < len(set(ids)):
        click.echo("error: there is no such delivery; `sb-worker dead list` has the ids", err=True)
        sys.exit(1)


@dead.command(
    short_help="Deliver dead letters after all, at a rate.",
    epilog=examples("sb-worker dead replay 17", "sb-worker dead replay --all --sink slack --newer 24h --rate 5"),
)
@click.argument("ids", type=click.IntRange(1, 2**63 - 1), nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that the options choose; needed without ids.")
@click.option("--rate", type=click.FloatRange(0.01, 1000), default=1.0, show_default=True, help="How many a second.")
@_filter_options
def replay(ids: tuple[int, ...], everything: bool, rate: float, **filters: Any) -> None:
    """Deliver dead letters after all: under their old ids, one by one, at a rate."""
    _ids_or_all(ids, everything)
    with outbox() as connection:
        replayed = dead_letters.replay(connection, DeliveryFilter(ids=ids, **filters), per_second=rate)
        known = dead_letters.targets(connection)
    number = len(replayed)
    click.echo(f"{number} to be delivered again, over {max(0, number - 1) / rate:.0f}s")
    for name in sorted(set(replayed)):
        if name in known and known[name]["muted_until"]:
            until = _utc(known[name]["muted_until"], "%Y-%m-%d %H:%M:%SZ")
            text = f"warning: {name} is muted: they wait until {until}, or `sb-worker notify unmute {name}`"
            click.echo(text, err=True)
        if name in known and known[name]["off_fingerprint"] is not None:
            reason = known[name]["off_reason"]
            text = f"warning: {name} is switched off ({reason}): they wait until `sb-worker notify enable {name}`,"
            click.echo(f"{text} a probe that gets through, or another configuration", err=True)


@dead.command(epilog=examples("sb-worker dead purge 17", "sb-worker dead purge --all --sink slack --older 168h"))
@click.argument("ids", type=click.IntRange(1, 2**63 - 1), nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that the options choose; needed without ids.")
@_filter_options
def purge(ids: tuple[int, ...], everything: bool, **filters: Any) -> None:
    """Close dead letters for good."""
    _ids_or_all(ids, everything)
    with outbox() as connection:
        click.echo(f"{dead_letters.purge(connection, DeliveryFilter(ids=ids, **filters))} closed")


def _ids_or_all(ids: tuple[int, ...], everything: bool) -> None:
    if bool(ids) == everything:
        raise click.UsageError("give ids, or --all with options that choose")


def loaded_settings() -> Loaded:
    """Return every setting; whatever is wrong with them ends the command."""
    configure_logging("error")
    try:
        return load(SWEEPERS, SINKS)
    except ConfigError as error:
        refuse(error)


def _sinks() -> tuple[NotificationSettings, list[routing.Target]]:
    """Return the common settings and the receivers, without the other settings: a test needs no database."""
    try:
        loaded: list[Any] = list(config.load(NotificationSettings, *(sink.settings for sink in SINKS)))
        targets = routing.targets(SINKS, loaded[1:])
        if problems := list(routing.problems(loaded[0], targets, [sweeper.name for sweeper in SWEEPERS])):
            raise ConfigError(problems)  # noqa: TRY301 - both kinds of problem are reported alike
    except ConfigError as error:
        refuse(error)
    return loaded[0], targets


def refuse_sink(name: str | None, targets: Iterable[routing.Target]) -> NoReturn:
    """End the command because there is no such receiver, and say which there are or how to get one."""
    for sink in SINKS:
        if sink.name == name:
            click.echo(f"error: {name} is not configured; set {_first_variable(sink)}", err=True)
            sys.exit(1)
    configured = ", ".join(target.name for target in targets)
    raise click.BadParameter(f"no sink is called {name}; configured: {configured}")


@contextmanager
def outbox(loaded: Loaded | None = None) -> Iterator[Connection[Any]]:
    """Yield a connection to where the outbox is; a server that fails, or an old schema, ends the command."""
    loaded = loaded or loaded_settings()
    try:
        with postgres.connect(loaded.database) as connection:
            if migrations.installed(connection) < migrations.VERSION:
                raise BootError("the schema secrets_bridge_worker is not up to date; run `sb-worker migrate`")  # noqa: TRY301 - the same
            yield connection
    except BootError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


def _show(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    if as_json or not sys.stdout.isatty():
        for row in rows:
            click.echo(json.dumps(row, default=str))
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    Terminal().print(table)


def _cell(value: object) -> str:
    text = f"{value:%m-%d %H:%M:%S}" if isinstance(value, datetime) else str(value)
    if text in ("dead", "rejected", "no"):
        return f"[red]{text}[/]"
    if text in ("delivered", "yes"):
        return f"[green]{text}[/]"
    return re.sub(r"\[", r"\\[", text)
