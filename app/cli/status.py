"""`sb-worker status`: what a deployment does now, what is wrong with it, and the command or step that mends that."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import click
import psycopg
from rich.live import Live

from actors import SWEEPERS
from app.cli.help import examples
from app.cli.overview import screen
from app.cli.terminal import Terminal
from app.core.errors import BootError
from app.core.logging import configure_logging
from app.overview import reading
from app.overview.as_json import JsonWriter
from app.overview.model import Overview, Verdict
from app.overview.views import Asked
from app.storage import postgres
from app.storage.redis import connect
from app.worker.loading import Loaded, load
from sinks import SINKS

if TYPE_CHECKING:
    from psycopg import Connection

    from app.storage.redis import Client

#: How long an answer of either server is waited for: short enough that who watches sees an outage soon.
ANSWER_WITHIN = timedelta(seconds=2)
#: Seconds between two looks of who watches.
REFRESH_SECONDS = 1.0
#: Seconds until a Ctrl-C between two looks is seen.
_LATENCY = 0.05
#: Columns of a screen that has all of them.
_WIDE = 250
_EXIT = {Verdict.FINE: 0, Verdict.DEGRADED: 3, Verdict.UNKNOWN: 1}


@click.command(
    "status",
    short_help="Show what the deployment does, and what is wrong with it.",
    epilog=examples("sb-worker status", "sb-worker status --watch", "sb-worker status -o json | jq .problems"),
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "wide", "json"]),
    default="table",
    show_default=True,
    help="table is as wide as the terminal; wide has every column; json is one document.",
)
@click.option("--json", "as_document", is_flag=True, hidden=True, help="The same as -o json.")
@click.option("--watch", is_flag=True, help="Keep the screen up to date until Ctrl-C.")
def status(output: str, as_document: bool, watch: bool) -> None:
    """Show what the deployment does, and what is wrong with it.

    Ends with status 0 when all is fine, 3 when something is not, 1 when that cannot be told.
    """
    configure_logging("error")
    output = "json" if as_document else output
    console = Terminal()
    if watch and (output == "json" or not console.is_terminal):
        raise click.UsageError("--watch paints on a terminal; for a program, ask for -o json again and again")
    with _Deployment(load(SWEEPERS, SINKS)) as deployment:
        if watch:
            _watch(console, deployment, wide=output == "wide")
            return
        overview = deployment.read()
    if output == "json":
        first = {"verdict": overview.verdict, "problems": overview.problems, "now": overview.now}
        click.echo(JsonWriter().text({**first, **vars(overview)}))
    else:
        _print(console, overview, wide=output == "wide")
    sys.exit(_EXIT[overview.verdict])


def _watch(console: Terminal, deployment: _Deployment, *, wide: bool) -> None:
    """Paint the screen anew each second, at whatever size the terminal has then; leave the last one behind."""
    overview: Overview | None = None
    with suppress(KeyboardInterrupt), _interrupts() as heard:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while not heard:
                overview = deployment.read()
                live.update(screen.fitted(overview, *console.size, wide=wide), refresh=True)
                next_look = time.monotonic() + REFRESH_SECONDS
                while not heard and time.monotonic() < next_look:
                    time.sleep(_LATENCY)
        if overview is not None:
            _print(console, overview, wide=wide)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Yield the Ctrl-Cs that came since, and raise KeyboardInterrupt from the second on.

    The first is not raised: it could land where exceptions get lost, or leave a connection in the midst of a statement.
    """
    heard: list[int] = []

    def hear(number: int, _frame: FrameType | None) -> None:
        heard.append(number)
        if len(heard) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)


def _print(console: Terminal, overview: Overview, *, wide: bool) -> None:
    """Print all of it, with lines as long as they come if that was asked for."""
    console.width = max(console.width, _WIDE) if wide else console.width
    console.print(screen.whole(overview, console.width, wide=wide))


class _Deployment:
    """Both servers of a deployment, connected to as far as they are there."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._redis: Client = connect(loaded.redis, answer_within=ANSWER_WITHIN)
        self._connection: Connection[Any] | None = None
        self._asked = Asked(
            pairs=tuple(zip(SWEEPERS, loaded.sweepers, strict=True)),
            targets=tuple(target.name for target in loaded.targets),
            namespace=loaded.redis.namespace,
            most_pages=loaded.worker.pages,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._redis.close()
        self._drop()

    def read(self) -> Overview:
        """Return an overview of this moment; a connection that was lost is made anew first."""
        no_connection = ""
        if self._connection is None or self._connection.closed:
            try:
                self._connection = postgres.connect(self._loaded.database, ANSWER_WITHIN)
            except BootError as error:
                self._connection = None
                no_connection = str(error).removeprefix("DATABASE_URL: PostgreSQL cannot be reached: ")
        overview = reading.read(self._connection, self._redis, self._asked, no_connection=no_connection)
        if any(server.problem for server in overview.servers if server.name == "postgres"):
            self._drop()  # where the URL leads by the next look is another server, it may be
        return overview

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None
