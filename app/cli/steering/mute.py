"""`sb-worker notify mute` and `unmute`: leave a sink in peace for a while, and lose nothing."""

from __future__ import annotations

import sys
from datetime import UTC, timedelta

import click

from app.cli.help import examples
from app.cli.names import SINK
from app.cli.notify import loaded_settings, outbox, refuse_sink
from app.cli.steering.operator import who
from app.cli.values import Length, OneLine
from app.notify import mutes
from app.notify.mutes import LONGEST_MUTE, MOST_REASON
from app.worker.loading import Loaded


@click.command(
    "mute",
    short_help="Send a sink nothing for a while.",
    epilog=examples("sb-worker notify mute slack --for 2h --reason 'maintenance'"),
)
@click.argument("sink", type=SINK)
@click.option("--for", "length", required=True, type=Length(most=LONGEST_MUTE), help="For so long, such as 2h.")
@click.option("--reason", type=OneLine(MOST_REASON), help="Why, for those who wonder; `notify log` shows it.")
def mute_command(sink: str, length: timedelta, reason: str | None) -> None:
    """Send nothing to SINK, or to one receiver of it, for a while; what is for it waits, and goes as one message then.

    Every replica keeps to it, and it ends by itself. Another mute takes the place of the one before.
    """
    loaded = loaded_settings()
    _refuse_the_log(sink, loaded)
    with outbox(loaded) as connection:
        receivers = [target.name for target in loaded.targets]
        names, until = mutes.mute(connection, sink, receivers, length=length, by=who(), reason=reason or "")
    if not names:
        refuse_sink(sink, loaded.targets)
    end = until.astimezone(UTC)
    for name in names:
        click.echo(
            f"{name} is muted until {end:%Y-%m-%d %H:%M:%SZ}; what is for it waits, and goes as one message then"
        )


@click.command(
    "unmute",
    short_help="Send a sink again what it is to get.",
    epilog=examples("sb-worker notify unmute slack"),
)
@click.argument("sink", type=SINK)
def unmute_command(sink: str) -> None:
    """End the mute of SINK, or of one receiver of it; what waited for it goes out."""
    with outbox() as connection:
        names = mutes.unmute(connection, sink)
    for name in names:
        click.echo(f"{name} is not muted any more; what waited for it goes out")
    if not names:
        click.echo(f"error: {sink} is not muted; `sb-worker notify log --sums` has the names", err=True)
        sys.exit(1)


def _refuse_the_log(sink: str, loaded: Loaded) -> None:
    for target in loaded.targets:
        if target.sink.at_commit is not None and sink == target.name:
            raise click.BadParameter(f"{sink} reaches nobody: it is the log, and has its line from the start")
