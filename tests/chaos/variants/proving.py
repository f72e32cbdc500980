"""Proves the checks: one deployment, in which one broken build after the other must be found out by its check."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, LiteralString, NamedTuple, Self

import psycopg
from psycopg import Connection

from actors import SWEEPERS
from tests.chaos import checks, history
from tests.chaos.checks.violation import Violation
from tests.chaos.deployment import COMMANDS, Deployment, Plan
from tests.chaos.surroundings.load import Load
from tests.chaos.variants.defects import DEFECTS
from tests.chaos.variants.provoking import LOOK, PROVOCATIONS
from tests.chaos.watch import Watch
from tests.support.waiting import HUNG_PROCESS, eventually

#: Seconds after which a defect is called undetected.
MOST = HUNG_PROCESS
#: Seconds in which what was begun comes to its end, and in which a tick comes.
REST = 3.0
NAMES = tuple(name for name, defect in DEFECTS.items() if defect.check)
CADENCES = {sweeper.name: (timedelta(seconds=1),) for sweeper in SWEEPERS}
#: A lease under which a worker may be stopped for some seconds in the middle of a transaction.
SETTINGS = {"SB_WORKER_LOCK_LEASE": "12s"}
_FORGET: LiteralString = """
TRUNCATE chaos.renewed, secrets_bridge_worker.sweep_state, secrets_bridge_worker.sweep_run,
         secrets_bridge_worker.notification_event, secrets_bridge_worker.notification_delivery,
         secrets_bridge_worker.notification_target, secrets_bridge_worker.notification_hold RESTART IDENTITY CASCADE
"""
_FORGET_CHANGES: LiteralString = "TRUNCATE chaos.change"  # whose numbers go on: the watch has seen those before
# What a worker that was killed had sent goes on in the server.
_SESSIONS: LiteralString = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'worker%'
"""
_ONCE: LiteralString = """
CREATE UNIQUE INDEX sweep_run_once ON secrets_bridge_worker.sweep_run (name, slot)
 WHERE outcome IN ('running', 'success')
"""
_OPEN: LiteralString = """
SELECT (SELECT count(*) FROM secrets_bridge_worker.notification_delivery WHERE finished_at IS NULL)
     + (SELECT count(*) FROM secrets_bridge_worker.sweep_run WHERE outcome = 'running')
"""


def _truncated(sql: Connection[Any]) -> bool:
    """Forget the past; not while the load or a notifier locks the same tables in another order."""
    try:
        sql.execute(_FORGET)
        sql.execute(_FORGET_CHANGES)
    except psycopg.errors.DeadlockDetected:
        return False
    return True


class Proof(NamedTuple):
    """What became of one defect."""

    defect: str
    check: str
    found: bool
    seconds: float

    def __str__(self) -> str:
        end = f"found in {self.seconds:.1f} s" if self.found else f"NOT FOUND in {self.seconds:.1f} s"
        return f"{self.defect:20} {self.check:14} {end:20} {DEFECTS[self.defect].text}"


class Proving:
    """A deployment whose workers and notifiers are replaced by broken ones."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        #: Since when every sweeper has had the time to succeed, monotonic seconds; none where it may need more.
        self._calm: float | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sb-chaos-")))
            directory.chmod(0o755)  # PostgreSQL's user goes through it
            plan = Plan(settings=SETTINGS, records_locks=True, numbers={"scheduler": 2, "notifier": 1})
            self.deployment = stack.enter_context(Deployment(directory, plan))
            url = self.deployment.postgres.url()
            stack.enter_context(Load(url, seed=1))
            self._watch = stack.enter_context(Watch(url))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def prove(self, name: str) -> Proof:
        """Play one defect until its check has found it, or for as long as that may take."""
        defect = DEFECTS[name]
        with self._build(name):
            began = time.monotonic()
            self._calm = None
            while not (found := self._found(name)) and time.monotonic() < began + MOST:
                PROVOCATIONS[defect.by](self.deployment, lambda: self._found(name))
                self._calm = began if defect.by == "rest" else None
                time.sleep(LOOK)
            return Proof(name, defect.check, found, time.monotonic() - began)

    def without_a_defect(self) -> list[Violation]:
        """Play every provocation with a build that is well, let it come to rest, and return what the checks find."""
        with self._build("none"):
            self._calm = time.monotonic()
            for provoke in PROVOCATIONS.values():
                provoke(self.deployment, lambda: False)
            until = time.monotonic() + HUNG_PROCESS
            while not self._comes_to_rest():
                assert time.monotonic() < until, "runs or deliveries stay open"
            found = self._history()
            self._start_schedulers()
        return checks.run(found)

    def _comes_to_rest(self) -> bool:
        """End schedulers and return whether nothing is open; else start them again: the next tick closes what is."""
        for name in self.deployment.names("scheduler"):
            self.deployment.kill(name)
        rests_until = time.monotonic() + REST
        while time.monotonic() < rests_until:
            if self._rests():
                return True
            time.sleep(LOOK)
        self._start_schedulers()
        time.sleep(REST)
        return False

    def _start_schedulers(self) -> None:
        for name in ("scheduler0", "scheduler1"):
            self.deployment.start(name)

    @contextmanager
    def _build(self, name: str) -> Iterator[None]:
        """Have workers, or notifiers, of this build and an empty past, and end the workers again."""
        deployment, defect = self.deployment, DEFECTS[name]
        self._end("worker")
        if defect.kind == "notifier":
            self._end("notifier")
        self._forget(once=name != "no-slot-mark")
        commands = {**COMMANDS, defect.kind: ("python", "-m", "tests.chaos.variants", name, *COMMANDS[defect.kind])}
        settings = {**SETTINGS, **defect.settings}
        deployment.plan = dataclasses.replace(deployment.plan, commands=commands, settings=settings)
        started = [*(["notifier0"] if defect.kind == "notifier" else []), "worker0"]
        started += ["worker1"] if defect.by == "stop" or not defect.check else []
        for process in started:
            deployment.start(process)
        for process in started:
            deployment.processes[process].ready()
        try:
            yield
        finally:
            self._end("worker")
            deployment.plan = dataclasses.replace(deployment.plan, commands=COMMANDS, settings=SETTINGS)
            if defect.kind == "notifier":
                self._end("notifier")
                deployment.start("notifier0")

    def _end(self, kind: str) -> None:
        for name in self.deployment.names(kind):
            self.deployment.kill(name)

    def _forget(self, *, once: bool) -> None:
        with self.deployment.sql() as sql:
            eventually(lambda: sql.execute(_SESSIONS).fetchone() == (0,))
            sql.execute("DROP INDEX IF EXISTS secrets_bridge_worker.sweep_run_once")
            eventually(lambda: _truncated(sql))
            if once:
                sql.execute(_ONCE)
        with self.deployment.client() as client:
            client.flushall()
        for server in self.deployment.outside.servers.values():
            server.accepted.clear()
        self.deployment.log.faults.clear()
        if self.deployment.lock_record:
            self.deployment.lock_record.steps.clear()

    def _history(self) -> history.History:
        return history.read(self.deployment, self._watch, CADENCES, calm=self._calm)

    def _found(self, name: str) -> bool:
        defect = DEFECTS[name]
        return any(defect.says in text for text in checks.CHECKS[defect.check](self._history()))

    def _rests(self) -> bool:
        with self.deployment.sql() as sql:
            row = sql.execute(_OPEN).fetchone()
        return row == (0,)


def prove_all(progress: Callable[[str], None]) -> list[Proof]:
    """Prove every check by every defect, one after the other; `progress` is told of each."""
    proofs = []
    with Proving() as proving:
        for name in NAMES:
            proofs.append(proving.prove(name))
            progress(str(proofs[-1]))
    return proofs
