"""`sb-worker`: an operator's commands. Exit status 0 fine, 1 failed, 2 wrong usage."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import click
from rich.table import Table

from actors import SWEEPERS
from app import __version__
from app.cli import configuration
from app.cli.checks.command import check
from app.cli.completion import completion
from app.cli.help import TOP, TOP_EPILOG, Sectioned, examples
from app.cli.history.runs import runs
from app.cli.history.verify import verify
from app.cli.history.why import why
from app.cli.notify import dead, notify
from app.cli.status import status
from app.cli.steering.mute import mute_command, unmute_command
from app.cli.steering.pause import pause_command, resume_command
from app.cli.steering.sweep import sweep_command
from app.cli.steering.unlock import unlock_command
from app.cli.terminal import Terminal
from app.core import config
from app.core.bounded_input import content
from app.core.logging import configure_logging
from app.core.role import new_replica
from app.core.values import parse_int
from app.storage import migrations, postgres
from app.storage.settings import DatabaseSettings
from app.supervisor import procfile
from app.tracing.start import MODULE as TRACING
from app.worker.loading import Loaded, groups, load
from sinks import SINKS

_GROUPS = groups(SWEEPERS, SINKS)
#: Processes of one entry of a Procfile; each has a pipe to the runner, a probe port and its share of the machine.
_MOST_REPLICAS = 64
#: The programs that are forked from one process where that is safe, and the modules that they share then.
_PROGRAMS = {"dramatiq": "dramatiq.__main__:main", "periodiq": "periodiq:entrypoint", "sb-worker": "app.cli.entry:main"}
_SHARED = (
    *("app.core.logging", "dramatiq.cli"),  # the first one before others load structlog, which it keeps small
    *("app.worker.assembly", "app.notify.transport", "actors", "sinks"),
)


@click.group(
    cls=Sectioned,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help=TOP,
    epilog=TOP_EPILOG,
)
@click.version_option(__version__, prog_name="sb-worker")
def main() -> None:
    """Operate the secrets-bridge worker."""


notify.add_command(mute_command)
notify.add_command(unmute_command)
for command in (check, notify, dead, sweep_command, pause_command, resume_command, unlock_command, status, completion):
    main.add_command(command)
for command in (why, runs, verify):
    main.add_command(command)


@main.command(
    "config",
    short_help="Print every variable, its value and what it means.",
    epilog=examples("sb-worker config", "sb-worker config --json | jq 'select(.source != \"default\")'"),
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as when piped.")
@click.option("--markdown", is_flag=True, help="Print docs/configuration.md, whatever is set here.")
def config_command(as_json: bool, markdown: bool) -> None:
    """Print every variable with its value, source, default and meaning. Secrets are shown as `set`."""
    if markdown:
        click.echo(configuration.markdown(SWEEPERS, SINKS))
        return
    rows = list(config.rows(*_GROUPS))
    if as_json or not sys.stdout.isatty():
        for row in rows:
            click.echo(json.dumps(row._asdict()))
    else:
        table = Table("variable", "value", "source", "default", "meaning")
        for row in rows:
            names = "\n".join((row.name, *(f"[dim]{twin}[/]" for twin in row.twins)))
            table.add_row(names, row.value, "default" if row.source == "default" else "set", row.default, row.meaning)
        Terminal().print(table)
    _load()


@main.command(
    short_help="Create or upgrade our own schema.",
    epilog=examples("sb-worker migrate", 'sb-worker migrate --sql | psql "$DATABASE_URL"    # as another role'),
)
@click.option("--sql", is_flag=True, help="Print the SQL instead of running it; needs no server.")
def migrate(sql: bool) -> None:
    """Create or upgrade our own schema, secrets_bridge_worker. Safe to run at any time, by any number."""
    if sql:
        click.echo(migrations.script())
        return
    configure_logging("error")
    with postgres.connect(DatabaseSettings.read()) as connection:
        before = migrations.installed(connection)
        version = migrations.migrate(connection)
    done = f"version {version}, nothing to do" if before == version else f"version {before} -> {version}"
    click.echo(f"schema secrets_bridge_worker: {done}")


@main.command(
    short_help="Run every process of the Procfile as one replica.",
    epilog=examples("sb-worker run", "sb-worker run -c worker=2,scheduler=0"),
)
@click.option("--procfile", "path", default="Procfile", show_default=True, help="The file that lists the processes.")
@click.option("--release/--no-release", default=True, show_default=True, help="Run the release entry first.")
@click.option("-c", "--concurrency", multiple=True, metavar="worker=2,...", help="How many of which process to run.")
def run(path: str, release: bool, concurrency: Sequence[str]) -> None:
    """Run every process of the Procfile as one replica; ends when one of them ends, or by SIGTERM."""
    _semaphore()
    loaded = _load()  # all of it, so that a problem is reported once and not by every process
    try:
        commands = _for_role(loaded.worker.role, procfile.parse(_text(path)))
        replicas = _replicas(",".join(concurrency), set(commands))
    except OSError:
        raise click.BadParameter(f"{path} cannot be read; run this from the project's root") from None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    # The processes are started by name; they are beside this program, whether or not its directory is in PATH.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    workers = replicas.get("worker", 1) if "worker" in commands else 0
    environs = dict(_addresses(loaded, workers, replicas.get("notifier", 1)))
    for number in range(1, workers + 1):  # the first one shows the processes of all
        environs[number].update(new_replica(os.getpid() if number == 1 else 0))
    linux = sys.platform == "linux"  # elsewhere a fork of a process with system libraries in it may hang
    try:
        procfile.become(
            commands,
            environs=environs,
            preload=(*_SHARED, *([TRACING] if loaded.tracing.enabled else [])) if linux else (),
            programs=_PROGRAMS if linux else {},
            replicas=replicas,
            grace=loaded.worker.shutdown_grace.total_seconds(),
            release=release,
        )
    except OSError:
        raise click.BadParameter(f"{path} is too long, or Python cannot be started again") from None


def _for_role(role: str, commands: dict[str, str]) -> dict[str, str]:
    """Return the commands of a Procfile; for the role `all` its worker serves every queue, and there is no notifier."""
    if role != "all" or "worker" not in commands:
        return commands
    worker = re.sub(r"\s(--queues|-Q)(\s+[^-\s]\S*)+", "", commands["worker"])
    return {name: command for name, command in commands.items() if name != "notifier"} | {"worker": worker}


def _semaphore() -> None:
    """End with one line where the system has no room for a semaphore; Dramatiq would end with a traceback."""
    try:
        multiprocessing.Semaphore()
    except OSError:
        raise click.ClickException("no semaphore can be made, which Dramatiq needs; is /dev/shm full?") from None


def _text(path: str) -> str:
    """Return a Procfile's text. Raises OSError, and ValueError when it is no text."""
    try:
        return content(path).decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None


def _addresses(loaded: Loaded, workers: int, notifiers: int) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield for each replica number probe addresses of a worker and a notifier: the next ports, workers first."""
    worker = loaded.worker.local_address
    notifier = worker[0], worker[1] + workers
    if os.environ.get("SB_NOTIFICATION_LOCAL_ADDR"):
        notifier = loaded.notification.local_address
    for number in range(max(workers, notifiers)):
        addresses = {"SB_WORKER_LOCAL_ADDR": worker, "SB_NOTIFICATION_LOCAL_ADDR": notifier}
        yield number + 1, {name: _address(host, port + number) for name, (host, port) in addresses.items()}


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _replicas(text: str, names: set[str]) -> dict[str, int]:
    pairs: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, _, count = part.partition("=")
        pairs[name] = count
    with suppress(ValueError):
        counts = {name: parse_int(count) for name, count in pairs.items()}
        if names.issuperset(counts) and all(0 <= count <= _MOST_REPLICAS for count in counts.values()):
            return counts
    raise ValueError(
        f"--concurrency takes name=number pairs, with names of the Procfile ({', '.join(sorted(names))}) and "
        f"numbers up to {_MOST_REPLICAS}"
    )


def _load() -> Loaded:
    """Return every setting. Raises ConfigError with all problems when something is wrong."""
    return load(SWEEPERS, SINKS)
