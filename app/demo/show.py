"""`make demo`: the Procfile on embedded servers, with two workers, and a live view of every sweeper.

DEMO_SECONDS=60 ends it after a minute; else it runs until Ctrl-C. Nothing is left running or on disk. Where there is no
terminal, how things stand is printed every five seconds; as JSON with DEMO_JSON=1.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from actors import SWEEPERS
from app.demo import argocd, data, ending, receiver
from app.demo import view as status
from app.demo.argocd import Argocd
from app.demo.binaries import ServerMissing
from app.demo.ports import reserved_port
from app.demo.receiver import Receiver
from app.demo.servers import Postgres, Redis, ServerFailed
from app.notify import dead_letters
from app.storage import migrations
from app.supervisor.parent_death import signal_at_parent_death

#: Shorter cadences than in production, so that the view changes.
CADENCES = {
    "SB_SWEEP_WRAPS_INTERVAL": "5s",
    "SB_SWEEP_SECRETS_INTERVAL": "10s",
    "SB_SWEEP_AGENTS_INTERVAL": "5s",
    "SB_SWEEP_AGENTS_STALE_AFTER": "60s",
    "SB_SWEEP_JOBS_INTERVAL": "3s",
    "SB_SWEEP_DISCOVER_INTERVAL": "15s",
    "SB_SWEEP_GITOPS_POLL_INTERVAL": "2s",
    "SB_SWEEP_GITOPS_TIMEOUT_INTERVAL": "5s",
}
WORKERS = 2
REFRESH_SECONDS = 0.5
#: Where there is no terminal: how often things are printed, and how wide.
PRINT_SECONDS, PRINT_WIDTH = 5.0, 110
_STAND_INS = f"""\
The receiver of notifications and the ArgoCD are stand-ins of this demo, and fail on purpose:
  the receiver is out of order for {receiver.DOWN_SECONDS:.0f}s of {receiver.EVERY_SECONDS:.0f}s, first after \
{receiver.FIRST_SECONDS:.0f}s
  ArgoCD is too busy (503) for {argocd.BUSY_SECONDS:.0f}s of {argocd.EVERY_SECONDS:.0f}s, first after \
{argocd.FIRST_SECONDS:.0f}s; a second one is switched off"""
_ROOT = Path(__file__).parent.parent.parent
_SQL = Path(__file__).parent / "control_plane.sql"


def main() -> int:
    """Run the demo and return its exit status. Raises KeyboardInterrupt when Ctrl-C came before its view was there."""
    seconds = _seconds()
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    console.print("[bold]secrets-bridge worker[/], on a PostgreSQL and a Redis of its own. Ctrl-C ends it.")
    try:
        with (
            ending.swept("sb-demo-") as path,
            Postgres(path, home=path / "pg") as postgres,
            Redis(path) as redis,
            Receiver() as receiver,
            Argocd(path) as argocd,
            reserved_port(*range(1, WORKERS + 1)) as port,
        ):
            ending.check()
            demo = _Demo(console, postgres.url(), redis.url(), receiver, argocd, seconds)
            demo.environ["SB_WORKER_LOCAL_ADDR"] = f"127.0.0.1:{port}"
            demo.environ["SB_WORKER_METRICS_DIR"] = str(path)
            return demo.run()
    except (ServerMissing, ServerFailed) as error:
        if ending.asked():
            return 0  # it was cut
        console.print(f"[red]error:[/] {error}")
        return 1


class _Demo:
    """The replica's runner, the data that arrives, and the view of both."""

    def __init__(  # noqa: PLR0913, PLR0917 - its parts
        self,
        console: Console,
        database: str,
        redis: str,
        receiver: Receiver,
        argocd: Argocd,
        seconds: float | None,
    ) -> None:
        self.console = console
        self.receiver = receiver
        self.argocd = argocd
        self.database = database
        self.seconds = seconds
        self.events: deque[str] = deque(maxlen=8)
        self.lines: deque[str] = deque(maxlen=40)
        self.notified = 0
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SB_", "DATABASE_", "REDIS_"))}
        self.hints = (
            "From another terminal, against these servers:",
            f"  export DATABASE_URL={database}",
            f"  export REDIS_URL={redis}",
            "  .venv/bin/sb-worker status --watch    # or: notify log, dead list, --help",
        )
        self.environ = {
            **clean,
            "DATABASE_URL": database,
            "REDIS_URL": redis,
            **CADENCES,
            **receiver.variables(),
            **argocd.variables(),
            "SB_DISCOVER_TARGETS_JSON": data.TARGETS,
        }
        os.environ.update({**CADENCES, **argocd.variables()})
        settings = [(sweeper.name, sweeper.settings.read()) for sweeper in SWEEPERS]
        self.cadences = [(name, own.tick) for name, own in settings if own.enabled]

    def run(self) -> int:
        ending.defer()
        with psycopg.connect(self.database, autocommit=True) as connection:
            connection.execute(_SQL.read_bytes())
            data.pile_up(connection)
            self.argocd.enter(connection)
            migrations.migrate(connection)
            ending.check()
            self.console.print(
                f"60,000 wraps, 9,000 secrets, 300 agents, 4,000 jobs; {WORKERS} workers, 1 notifier, 1 scheduler",
                _STAND_INS,
                *self.hints,
                sep="\n",
            )
            started = time.monotonic()
            with self._replica() as runner:
                self._watch(connection, runner, started)
            stopped = runner.returncode in (0, -signal.SIGTERM)  # by us, be it before it listened
            self._summary(connection, time.monotonic() - started)
        if not stopped:
            self.console.print("[red]the replica failed:[/]", *self.lines, sep="\n", markup=False)
        return 0 if stopped else 1

    @contextmanager
    def _replica(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run `sb-worker run` while the body does, and wait for its end, however long that takes."""
        process = subprocess.Popen(
            [sys.executable, "-c", "from app.cli.entry import main; main()", "run", "-c", f"worker={WORKERS}"],
            cwd=_ROOT,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=signal_at_parent_death,  # noqa: PLW1509 - no threads run at this point
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        try:
            yield process
        finally:
            process.terminate()
            while process.poll() is None:
                self._read(process, 0.1)
            self._read(process, 0)
            process.stdout.close()

    def _watch(self, connection: Connection[Any], runner: subprocess.Popen[bytes], started: float) -> None:
        screen = self.console.is_terminal
        shown = time.monotonic()
        with Live(console=self.console, auto_refresh=False, transient=True, screen=screen) as live:
            while runner.poll() is None and not ending.asked():
                elapsed = time.monotonic() - started
                if self.seconds is not None and elapsed >= self.seconds:
                    return
                data.moment(connection)
                self._read(runner, REFRESH_SECONDS)
                if screen:
                    live.update(self._view(connection, elapsed, *self.console.size, self.hints), refresh=True)
                elif time.monotonic() - shown >= PRINT_SECONDS:
                    shown = time.monotonic()
                    self._print(connection, elapsed)
        if screen and ending.asked():  # the line that has been printed is on the screen that has gone
            ending.say()

    def _print(self, connection: Connection[Any], elapsed: float) -> None:
        """Print how things stand, where there is no terminal: lines to read, or JSON with DEMO_JSON=1."""
        if os.environ.get("DEMO_JSON") == "1":
            lines = [sweeper.as_json() for sweeper in status.read(connection, self.cadences)]
            for line in (*lines, self._receiver_line(), self._argocd_line(connection)):
                print(json.dumps(line), flush=True)
            return
        Console(width=PRINT_WIDTH, highlight=False).print("", self._view(connection, elapsed, PRINT_WIDTH, 40))

    def _view(
        self, connection: Connection[Any], elapsed: float, width: int, height: int, hints: Sequence[str] = ()
    ) -> Group:
        """Return the view, of as many lines as the terminal has: the table first, the rest for the latest lines."""
        remaining = f", {self.seconds - elapsed:.0f}s left" if self.seconds is not None else ""
        state = "[bold red]out of order[/]" if self.receiver.down else "[green]answers[/]"
        arrived = ", ".join(f"{sink} {number}" for sink, number in sorted(self.receiver.arrived.items()))
        mood = "[bold red]busy[/]" if self.argocd.busy else "[green]answers[/]"
        states = ", ".join(f"{state} {number}" for state, number in data.observations(connection).items())
        title = f"[bold]SWEEPERS[/] after {elapsed:.0f}s{remaining}: each runs once a slot, on either worker"
        headings = (
            f"[bold]NOTIFICATIONS[/] {self.notified} events of sweeps",
            f"[bold]RECEIVER[/] (stand-in) {state}, refused {self.receiver.refused}; got: {arrived or 'nothing yet'}",
            f"[bold]ARGOCD[/] (stand-in) {mood}, {self.argocd.requests} requests; changes: {states or 'none yet'}",
        )
        taken = 1 + len(hints)
        table = status.table(status.read(connection, self.cadences), width, height - taken - 2 * len(headings))
        share = max(1, (height - taken - 1 - table.row_count) // len(headings) - 1)
        latest = (list(self.events)[-share:], list(self.receiver.lines)[-share:], data.seen(connection)[:share])
        texts = [_block(title)]
        for heading, lines, style in zip(headings, latest, ("dim", "cyan", "magenta"), strict=True):
            texts.append(_block(heading).append("".join(f"\n  {line}" for line in lines), style))
        return Group(texts[0], table, *texts[1:], *(Text(hint, "dim", no_wrap=True) for hint in hints))

    def _argocd_line(self, connection: Connection[Any]) -> dict[str, Any]:
        states = data.observations(connection)
        return {"name": "argocd", "busy": self.argocd.busy, "requests": self.argocd.requests, "observations": states}

    def _receiver_line(self) -> dict[str, Any]:
        return {
            "name": "receiver",
            "answers": not self.receiver.down,
            "arrived": dict(self.receiver.arrived),
            "refused": self.receiver.refused,
            "latest": self.receiver.lines[-1] if self.receiver.lines else "",
        }

    def _read(self, runner: subprocess.Popen[bytes], seconds: float) -> None:
        """Read what the replica logs, for at most so many seconds."""
        stream = runner.stdout
        assert stream is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while selector.select(max(0.0, deadline - time.monotonic())):
                lines = stream.read()
                if not lines:
                    return
                for line in lines.decode(errors="replace").splitlines():
                    self._keep(line)

    def _keep(self, line: str) -> None:
        self.lines.append(line)
        try:
            record = json.loads(line)
        except ValueError:
            return
        if record.get("msg") == "notification":
            self.notified += 1
            counts = ", ".join(f"{key}={value:,}" for key, value in record.items() if isinstance(value, int))
            self.events.append(f"{record['time'][11:19]} {record['level']:<5} {record['title']} ({counts})")

    def _summary(self, connection: Connection[Any], elapsed: float) -> None:
        sweepers = status.read(connection, self.cadences)
        if self.console.is_terminal:
            self.console.print(f"after {elapsed:.0f}s", status.table(sweepers, self.console.width), sep="\n")
        row = connection.execute(_TOTALS).fetchone()
        runs, slots, changed, workers, late = row or (0, 0, 0, 0, 0)
        self.console.print(
            f"{runs:,} runs of {slots:,} slots by {workers} workers, each slot once; {changed:,} rows changed; "
            f"runs began {late:.0f} ms after their slot at the median; {self.notified} notifications",
            highlight=False,
        )
        ends = Counter({f"{row['target']} {row['state']}": row["number"] for row in dead_letters.sums(connection)})
        deliveries = ", ".join(f"{name} {number}" for name, number in sorted(ends.items()))
        arrived = sum(self.receiver.arrived.values())
        self.console.print(
            f"{arrived} messages arrived at the receiver, {self.receiver.refused} were refused while it was out of "
            f"order; deliveries: {deliveries}",
            highlight=False,
        )
        states = ", ".join(f"{state} {number}" for state, number in data.observations(connection).items())
        self.console.print(
            f"{self.argocd.requests} requests to ArgoCD, {self.argocd.refused} of them while it was busy; "
            f"observations: {states}",
            highlight=False,
        )


def _block(heading: str) -> Text:
    text = Text.from_markup(heading, overflow="ellipsis")
    text.no_wrap = True
    return text


_TOTALS = """
SELECT count(*), count(DISTINCT (name, slot)), coalesce(sum(changed), 0), count(DISTINCT worker),
       coalesce(1000 * percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - slot)), 0)
  FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success'
"""


def _seconds() -> float | None:
    text = os.environ.get("DEMO_SECONDS", "")
    if not text:
        return None
    if not text.isdecimal() or not int(text):
        print("error: DEMO_SECONDS must be a number of seconds, such as 60", file=sys.stderr)
        sys.exit(2)
    return float(text)
