"""What a round strikes: servers of its own, three schedulers, four workers, two notifiers, receivers and an ArgoCD.

Everything has the rights of production: the role of deploy/grants.sql, the Redis user of deploy/redis.acl. Each process
reaches both servers through a proxy of its own where a round asks for that.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg
import redis as redis_py
from psycopg import Connection

from app.demo.ports import reserved_port
from app.demo.servers import Postgres, Redis
from app.storage import migrations
from tests.chaos import preload
from tests.chaos.fault_log import FaultLog
from tests.chaos.launching import Launcher
from tests.chaos.orchestrator import Orchestrator
from tests.chaos.surroundings.lock_record import LockRecord
from tests.chaos.surroundings.outside import Outside
from tests.chaos.victims import Victims
from tests.support.argocd import ON
from tests.support.go_replica import Held
from tests.support.processes import QUICK, ROOT, SCHEDULER, WORKER, Process, environment
from tests.support.proxy import Proxy
from tests.support.rights.acl import PASSWORD, USER, users
from tests.support.rights.grants import grant

HERE = Path(__file__).parent
CONTROL_PLANE = ROOT / "app" / "demo" / "control_plane.sql"
ROLE = "secrets_bridge_worker_role"
LEASE_SECONDS = 3.0
#: Lines of a log that are shown of a process that has ended by itself.
LAST_WORDS = 5
COMMANDS = {
    "scheduler": SCHEDULER,
    "worker": (*WORKER, "--queues", "sweeps"),
    "notifier": (*WORKER, "--queues", "sinks"),
}
NUMBERS = {"scheduler": 3, "worker": 4, "notifier": 2}
#: All sweepers each second; receivers get each event by itself, unless many wait.
SETTINGS = {
    **QUICK,
    **ON,
    "SB_SWEEP_SESSIONS_INTERVAL": "1s",
    "SB_SWEEP_GITOPS_POLL_INTERVAL": "1s",
    "SB_SWEEP_GITOPS_TIMEOUT_INTERVAL": "1s",
    "SB_WORKER_LOCK_LEASE": f"{LEASE_SECONDS:g}s",
    "SB_NOTIFICATION_ALLOWED_NETWORKS": "127.0.0.0/8",
    "SB_NOTIFICATION_TIMEOUT": "2s",
    "SB_NOTIFICATION_PACE": "0s",
    "SB_NOTIFICATION_REPEAT_INTERVAL": "0s",
    "SB_NOTIFICATION_DIGEST_OVER": "20",
    "SB_NOTIFICATION_BREAKER_COOLDOWN": "1s",
    "SB_NOTIFICATION_RELAY_INTERVAL": "1s",
    "SB_NOTIFICATION_SLACK_MIN_SEVERITY": "info",
}
#: A commit is known to have happened once it is answered; no power cut is played, so nothing needs to reach the disk.
DURABLE = {"synchronous_commit": "on", "track_commit_timestamp": "on", "restart_after_crash": "on"}


@dataclass(frozen=True)
class Plan:
    """What a deployment is made with."""

    #: Whether each process reaches the servers through proxies of its own.
    proxied: bool = False
    #: Settings of all processes, on top of those above.
    settings: Mapping[str, str] = field(default_factory=dict)
    #: Commands in the place of those above, by kind: a build with a defect.
    commands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Environments of processes, by name, and of the servers "postgres" and "redis": clocks that can be moved.
    preload: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=lambda: NUMBERS)
    postgres_settings: Mapping[str, str] = field(default_factory=dict)
    #: Whether it is written down what becomes of the sweepers' locks; not where Redis or a clock is struck.
    records_locks: bool = False
    #: Whether there is a mail server beside the other receivers.
    mail: bool = False


class Deployment:
    """Servers and processes of one round. Several threads may strike it."""

    def __init__(self, directory: Path, plan: Plan | None = None) -> None:
        self.directory = directory
        self.plan = plan or Plan()
        self.log = FaultLog()
        self.processes: dict[str, Process] = {}
        #: Proxies by the name of their process.
        self.postgres_proxies: dict[str, Proxy] = {}
        self.redis_proxies: dict[str, Proxy] = {}
        #: Exit statuses of processes that nobody had killed.
        self.deaths: list[str] = []
        #: Settings that are being rolled out: processes that start now have them.
        self.rolled: dict[str, str] = {}
        #: How many releases were rolled out.
        self.releases = 0
        #: When a replica of the Go worker held which lock.
        self.go_held: list[Held] = []
        #: What became of the sweepers' locks, where the plan asks for that.
        self.lock_record: LockRecord | None = None
        #: What faults have found out while they struck, as sentences.
        self.remarks: list[str] = []
        #: Who is hurt, so that somebody is left who is well.
        self.victims = Victims(self)
        self._orchestrator = Orchestrator(self)
        #: Held by whoever replaces a process; and, of each server, by whoever breaks it and heals it.
        self.lock = threading.RLock()
        self.postgres_lock = threading.RLock()
        self.redis_lock = threading.RLock()
        #: Held by whoever moves clocks, which are compared with each other.
        self.clocks_lock = threading.RLock()
        self._server_pids: dict[str, int] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        enter = self._stack.enter_context
        self._launcher = enter(Launcher())
        self._launcher.remove(self.directory)
        self.postgres = self._postgres()
        self.redis = self._redis()
        for server in (self.postgres, self.redis):
            self._stack.push(server)
            self.start_server(server)
        if self.plan.records_locks:
            self.lock_record = enter(LockRecord(self.redis.url()))
        self.outside = enter(Outside(self._folder("outside"), mail=self.plan.mail))
        with self.sql() as sql:
            sql.execute(CONTROL_PLANE.read_bytes())
            migrations.migrate(sql)
            sql.execute((HERE / "audit.sql").read_bytes())
            sql.execute(f"CREATE ROLE {ROLE} LOGIN".encode())
            self.outside.watch_applications(sql)
        granted = grant(self.postgres.url(), ROLE)
        assert granted.returncode == 0, granted.stderr
        kinds = [kind for kind in ("worker", "notifier", "scheduler") for _ in range(self.plan.numbers.get(kind, 0))]
        names = [f"{kind}{kinds[:place].count(kind)}" for place, kind in enumerate(kinds)]
        self._stack.callback(self._end_processes)
        enter(self._orchestrator)
        for name in names:
            self.start(name)
        for name in names:
            if not name.startswith("scheduler"):
                self.processes[name].ready()

    def _folder(self, name: str) -> Path:
        folder = self.directory / name
        folder.mkdir()
        return folder

    def _postgres(self) -> Postgres:
        port = self._stack.enter_context(reserved_port())
        settings = {**DURABLE, **self.plan.postgres_settings}
        home = Path(tempfile.mkdtemp(prefix="sb-chaos-pg-"))  # the path of a socket must be short
        self._launcher.remove(home)
        return Postgres(self._folder("postgres"), port=port, settings=settings, home=home)

    def _redis(self) -> Redis:
        folder, port = self._folder("redis"), self._stack.enter_context(reserved_port())
        file = folder / "users.acl"
        file.write_text("user default on nopass ~* &* +@all\n" + users())
        return Redis(folder, port=port, options=("--aclfile", str(file)))

    def start_server(self, server: Postgres | Redis) -> None:
        """Start a server, for the first time or once more, and wait until it answers."""
        if server.name in self._server_pids:
            self._launcher.forget(self._server_pids[server.name])
        server.environment = self.plan.preload.get(server.name, {})
        self._launcher.launch(server.start)
        assert server.process is not None
        self._server_pids[server.name] = server.process.pid
        self._launcher.watch(server.process.pid)

    @contextmanager
    def sql(self) -> Iterator[Connection[Any]]:
        """Yield a superuser's connection past all proxies, each statement committed."""
        with psycopg.connect(self.postgres.url(), autocommit=True, connect_timeout=5) as connection:
            yield connection

    @contextmanager
    def client(self) -> Iterator[redis_py.Redis]:
        """Yield a client that may do anything, past all proxies."""
        with redis_py.Redis.from_url(self.redis.url(), socket_timeout=5) as client:
            yield client

    def clock(self, name: str) -> preload.Switch:
        """Return what moves the clock of a process or server, where it has one that can be moved."""
        return preload.clock(self.directory, name)

    @property
    def cadence(self) -> str:
        """The interval of all sweepers in processes that start now."""
        return {**SETTINGS, **self.rolled}["SB_SWEEP_WRAPS_INTERVAL"]

    @property
    def ordinary_url(self) -> str:
        """PostgreSQL past all proxies, with the rights of the worker's role."""
        return self.postgres.url(user=ROLE)

    def environment(self, name: str, **more: str) -> dict[str, str]:
        """Return the environment of a process; its connections to PostgreSQL bear its name, and tell its cadence."""
        database, store = self.ordinary_url, self.redis.url()
        if self.plan.proxied:
            if name not in self.postgres_proxies:
                self.postgres_proxies[name] = self._stack.enter_context(Proxy(self.postgres.port))
                self.redis_proxies[name] = self._stack.enter_context(Proxy(self.redis.port))
            database = database.replace(f":{self.postgres.port}/", f":{self.postgres_proxies[name].port}/")
            store = store.replace(f":{self.redis.port}", f":{self.redis_proxies[name].port}")
        return environment(
            f"{database}?application_name={name}&chaos.cadence={self.cadence}",
            store.replace("//", f"//{USER}:{PASSWORD}@"),
            **{
                **SETTINGS,
                **self.outside.settings,
                **self.plan.settings,
                **self.rolled,
                **self.plan.preload.get(name, {}),
                **more,
            },
        )

    def start(self, name: str, **settings: str) -> Process:
        """Start a process, whose name is its kind and a number, in the place of one that has ended."""
        kind = name.rstrip("0123456789")
        command, env = self.plan.commands.get(kind, COMMANDS[kind]), self.environment(name, **settings)
        log = self.directory / f"{name}.log"
        size = log.stat().st_size if log.exists() else 0
        process = self._launcher.launch(lambda: Process(command, env, log))
        self._orchestrator.started(process, size)
        self._launcher.watch(process.popen.pid)
        self.processes[name] = process
        return process

    def kill(self, name: str) -> None:
        """Kill a process and all its children, as the kernel's out-of-memory killer would, and wait for their end."""
        process = self.processes[name]
        self._note_death(name, process)
        with suppress(ProcessLookupError):
            os.killpg(process.popen.pid, signal.SIGKILL)
        self.give_up(name)

    def give_up(self, name: str) -> None:
        """Forget a process whose main process ends now, or has."""
        process = self.processes.pop(name)
        process.popen.wait()
        self._launcher.forget(process.popen.pid)
        process.__exit__(None)

    def _end_processes(self) -> None:
        for process in list(self.processes.values()):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.popen.pid, signal.SIGKILL)
            process.__exit__(None)

    def names(self, kind: str) -> list[str]:
        """Return the names of the processes of a kind, those that are dead as well."""
        return sorted(name for name in list(self.processes) if name.startswith(kind))

    def pids(self, name: str) -> list[int]:
        """Return the processes that a name stands for: the main one and its children."""
        with suppress(psutil.NoSuchProcess, KeyError):
            main = psutil.Process(self.processes[name].popen.pid)
            return [main.pid, *(child.pid for child in main.children(recursive=True))]
        return []

    def signal(self, name: str, number: signal.Signals) -> None:
        """Signal a process and all its children."""
        with suppress(ProcessLookupError, KeyError):
            os.killpg(self.processes[name].popen.pid, number)

    def note_deaths(self) -> None:
        """Write down which processes have ended although nobody has killed them."""
        for name, process in list(self.processes.items()):
            self._note_death(name, process)

    def _note_death(self, name: str, process: Process) -> None:
        status = process.popen.poll()
        if status is not None and not self._orchestrator.boot_failed(process):
            said = process.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_WORDS:]
            self.deaths.append("\n    ".join([f"{name} ended by itself with status {status}", *said]))
