"""What goes wrong in a deployment: each fault is done for real on entering, and mended on leaving."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import redis
from psycopg import Connection

from tests.support.processes import WORKER, Process, finished
from tests.support.rows import FIXED, insert_agent, insert_connection, insert_job, insert_wrap
from tests.support.waiting import eventually


@dataclass
class World:
    """A deployment: its environment, and ways to its servers beside its own."""

    name: str
    env: dict[str, str]
    place: Path
    sql: Connection[Any]
    redis: redis.Redis
    role: str = ""
    #: What receivers answer, by their path; 200 where nothing is said.
    answers: dict[str, int] = field(default_factory=dict)

    def process(self, words: Sequence[str], **more: str) -> Process:
        return Process(words, {**self.env, **more}, self.place / f"{self.name}.log")


@contextmanager
def a_lock_that_nobody_of_ours_holds(world: World) -> Iterator[None]:
    key = "secrets-bridge:lock:worker:sweeper:agents-stale"
    eventually(lambda: world.redis.set(key, "0" * 32, nx=True))
    yield
    world.redis.delete(key)


@contextmanager
def a_privilege_that_is_taken_away(world: World) -> Iterator[None]:
    world.sql.execute(f"REVOKE ALL ON secrets FROM {world.role}".encode())
    yield
    world.sql.execute(f"GRANT SELECT, UPDATE ON secrets TO {world.role}".encode())


@contextmanager
def a_table_that_somebody_holds(world: World) -> Iterator[None]:
    with psycopg.connect(world.sql.info.dsn) as other:
        # The last one: who inserts what refers to requests waits for it as well.
        other.execute("LOCK TABLE access_requests IN ACCESS EXCLUSIVE MODE")
        yield
        other.rollback()


@contextmanager
def a_row_that_is_refused(world: World) -> Iterator[None]:
    world.sql.execute(
        "CREATE FUNCTION bad() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'canary'; END $$"
    )
    world.sql.execute("CREATE TRIGGER bad BEFORE UPDATE ON sync_jobs FOR EACH ROW EXECUTE FUNCTION bad()")
    insert_job(world.sql, claim_expires_at=_ago(world, "1 h"))
    yield
    world.sql.execute("DROP FUNCTION bad() CASCADE")


@contextmanager
def a_row_that_somebody_holds(world: World) -> Iterator[None]:
    with psycopg.connect(world.sql.info.dsn) as other:
        wrap = insert_wrap(other, _ago(world, "1 h"))
        other.commit()
        held = "SELECT FROM secret_wraps WHERE id = %s::uuid FOR UPDATE SKIP LOCKED"
        while not other.execute(held, [wrap]).rowcount:  # it was swept already
            wrap = insert_wrap(other, _ago(world, "1 h"))
            other.commit()
        yield
        other.rollback()


@contextmanager
def a_pause_that_is_forgotten(world: World) -> Iterator[None]:
    world.sql.execute(
        "INSERT INTO secrets_bridge_worker.sweeper_pause (name, began_at, until, paused_by, reason)"
        " VALUES ('discover-stuck', now() - interval '5 h', now() + interval '1 h', 'test', 'test')"
    )
    yield
    world.sql.execute("UPDATE secrets_bridge_worker.sweeper_pause SET resumed_at = now(), resumed_by = 'test'")


@contextmanager
def far_more_than_usual_is_due(world: World) -> Iterator[None]:
    """Have every connection be due at once, which the brake of this deployment holds until somebody approves."""
    for number in range(30):
        insert_connection(world.sql, f"connection-{number}")
    yield
    done = finished(("sb-worker", "sweep", "discover-scheduler", "--approve"), world.env)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def a_worker_with_another_cadence(world: World) -> Iterator[None]:
    with world.process((*WORKER, "--queues", "sweeps"), SB_SWEEP_WRAPS_INTERVAL="7s") as other:
        other.ready()
        yield
        other.end()


@contextmanager
def a_clock_that_is_ahead(world: World) -> Iterator[None]:
    """Have each sign of life of the notifier say so."""
    world.sql.execute("""
        CREATE FUNCTION secrets_bridge_worker.ahead() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN NEW.clock_ahead := '10 s'; RETURN NEW; END $$;
        CREATE TRIGGER ahead BEFORE INSERT OR UPDATE ON secrets_bridge_worker.process
        FOR EACH ROW WHEN (NEW.kind = 'notifier') EXECUTE FUNCTION secrets_bridge_worker.ahead();
    """)
    yield
    world.sql.execute("DROP FUNCTION secrets_bridge_worker.ahead CASCADE")


@contextmanager
def receivers_that_refuse(world: World) -> Iterator[None]:
    """Refuse in three ways what a sweep reports."""
    world.answers.update({"/webhook": 401, "/slack": 400, "/teams": 503})
    old = (
        "UPDATE secrets_bridge_worker.notification_delivery SET queued_at = now() - interval '2 h'"
        " WHERE target = 'teams' AND state = 'pending'"
    )
    insert_agent(world.sql, "silent", last_seen_at=FIXED)
    eventually(lambda: world.sql.execute(old).rowcount)
    yield
    world.answers.clear()
    for words in (("notify", "enable", "webhook"), ("dead", "purge", "--all")):
        done = finished(("sb-worker", *words), world.env)
        assert done.returncode == 0, done.stdout + done.stderr


def _ago(world: World, how_long: str) -> Any:
    (moment,) = world.sql.execute("SELECT now() - %s::interval", [how_long]).fetchone() or (None,)
    return moment


@contextmanager
def a_switch_that_is_broken(world: World) -> Iterator[None]:
    world.answers["/beat"] = 500
    yield
    world.answers.pop("/beat", None)


#: What is done to one deployment, whose servers are well, and what fires for it, of what.
FAULTS: list[tuple[Callable[[World], AbstractContextManager[None]], set[tuple[str, str]]]] = [
    (
        receivers_that_refuse,
        {("SinkOff", "webhook"), ("DeadLetters", "webhook"), ("DeadLetters", "slack"), ("DeliveriesWaiting", "teams")},
    ),
    (a_switch_that_is_broken, {("HeartbeatFailing", "")}),
    (a_lock_that_nobody_of_ours_holds, {("LockHeldByStranger", "agents-stale"), ("SweepOverdue", "agents-stale")}),
    (a_privilege_that_is_taken_away, {("SweepFailing", "secrets-stale"), ("SweepOverdue", "secrets-stale")}),
    (far_more_than_usual_is_due, {("SweepBraked", "discover-scheduler")}),
    (a_row_that_is_refused, {("RowsFailed", "jobs-recovery"), ("SweepBacklogOld", "jobs-recovery")}),
    (a_row_that_somebody_holds, {("SweepBacklogOld", "wraps-expired")}),
    (a_pause_that_is_forgotten, {("SweepPausedForLong", "discover-stuck")}),
    (a_worker_with_another_cadence, {("CadencesDiffer", "wraps-expired")}),
    (a_clock_that_is_ahead, {("ClockOff", "notifier")}),
    (
        a_table_that_somebody_holds,
        {
            ("SweepFailing", "cross-team-fill-window-expired"),
            ("SweepOverdue", "cross-team-fill-window-expired"),
        },
    ),
]
