"""Real faults under a real Prometheus: each fires its own alerts, no other ones, and they clear once it is mended.

Four deployments have their faults at once, since each takes its time to be noticed. The rules are those of deploy, with
shorter patience; limits are as they stand there.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import redis as redis_py
from psycopg import Connection

from actors import SWEEPERS
from app.demo.ports import reserved_port
from app.demo.servers import Postgres
from app.storage import migrations
from tests.alerts import rules
from tests.alerts.faults import FAULTS, World
from tests.alerts.prometheus import Alert, Prometheus
from tests.conftest import CONTROL_PLANE
from tests.support.http_server import Receiver, Reply
from tests.support.packages import program
from tests.support.processes import QUICK, SCHEDULER, WORKER, Process, environment
from tests.support.rights.acl import GrantedRedis
from tests.support.rights.grants import ROLE, as_role, grant, granted
from tests.support.waiting import eventually

#: How much less patient the rules are here. Signs of life come every 5 s, and are read every few; a range must have two
#: GETs of the dead man's switch.
HURRY, SHORTEST, SHORTEST_RANGE = 180, 8, 30
#: Seconds within which alerts fire, and clear: limits are up to half a minute, and so far back a counter is looked at.
LIMIT = 100
TASKS = {sweeper.name for sweeper in SWEEPERS} - {"gitops-poller", "gitops-timeout", "sessions-expired"}
SLOWER = {name: "3s" for name, value in QUICK.items() if value == "1s"}
SINKS = {
    "SB_NOTIFICATION_ALLOWED_NETWORKS": "127.0.0.0/8",
    "SB_NOTIFICATION_RELAY_INTERVAL": "1s",
    "SB_NOTIFICATION_BREAKER_COOLDOWN": "1s",
    "SB_NOTIFICATION_REPEAT_INTERVAL": "0s",
    "SB_NOTIFICATION_PACE": "0s",
}
WATCHDOG = ("Watchdog", "", "")
#: What may be true for seconds after a recovery, for which the rules of deploy/ have minutes: of a sweeper whose table
#: appears a run is owed until its next tick; a scheduler lives for a moment before it is known what it has sent; once
#: PostgreSQL is back all signs of life are old until the next ones.
PASSING = {
    ("SweepOverdue", "busy", "reveal-sessions-expired"),
    *(("RedisUnavailable", name, "") for name in ("scheduler", "postgres")),
    *((name, "postgres", "") for name in ("SchedulerDead", "WorkerDown", "NotifierDown")),
}
#: Of a Prometheus that evaluates before its first scrape.
NOTHING_YET = ("NoReplica", "", "")
#: The api of one deployment is older than reveal sessions, from the beginning.
OLDER_API = ("TableMissing", "busy", "reveal-sessions-expired")

#: What is done to the servers and processes of the other three: nobody sweeps there, and that.
SERVERS = {
    ("SchedulerDead", "scheduler"),
    ("TargetDown", "scheduler"),
    ("RedisUnavailable", "redis"),
    ("PostgresUnavailable", "postgres"),
}


def until(prometheus: Prometheus, wanted: set[Alert], *, more: bool = False) -> None:
    """Wait until these alerts fire, and no others unless `more`; say which are missing or too many if they do not."""
    try:
        eventually(lambda: prometheus.firing() >= wanted if more else prometheus.firing() == wanted, LIMIT)
    except AssertionError:
        firing = prometheus.firing()
        print("missing:", sorted(wanted - firing), "too many:", sorted(firing - wanted))
        raise


def knows_its_fleet(worker: Process) -> bool:
    """Return whether a worker has read that all are there: the rules have no patience for a start."""
    alive = [worker.metric("worker_processes_alive", kind=kind) for kind in ("scheduler", "worker", "notifier")]
    return min(alive) > 0 and worker.metric("worker_scheduler_tick_age_seconds") < LIMIT


@contextmanager
def a_busy_deployment(sql: Connection[Any], role: str, own: redis_py.Redis, keys: str, place: Path) -> Iterator[World]:
    """Yield a replica with three sinks, whose role has no more privileges than it needs."""
    sql.execute("ALTER TABLE reveal_sessions RENAME TO not_yet")
    done = grant(sql.info.dsn, role)
    assert done.returncode == 0, done.stderr
    answers: dict[str, int] = {}
    info = sql.info
    database = f"postgres://{role}@{info.host}:{info.port}/{info.dbname}"
    with Receiver(lambda seen: Reply(answers.get(seen.path, 200))) as receiver, reserved_port() as port:
        sinks = {
            f"SB_NOTIFICATION_{name.upper()}_URL": f"{receiver.url}/{name}" for name in ("webhook", "slack", "teams")
        }
        sinks["SB_SWEEP_DISCOVER_BRAKE"] = "25%,never"
        sinks["SB_WORKER_HEARTBEAT_URL"] = f"{receiver.url}/beat"
        probes = {"SB_NOTIFICATION_LOCAL_ADDR": f"127.0.0.1:{port}"}
        env = environment(database, keys, **QUICK, **SINKS, **sinks, **probes)
        yield World("busy", env, place, sql, own, role, answers)


@contextmanager
def a_database(server: Postgres, name: str) -> Iterator[str]:
    """Yield the URL of a database of the control plane."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE control_plane STRATEGY file_copy".encode())
        yield as_role(server.url(name), ROLE)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def a_postgres(place: Path) -> Iterator[Postgres]:
    """Yield a server of its own with the control plane in its database."""
    place.mkdir()
    with reserved_port() as port, Postgres(place, port=port) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(CONTROL_PLANE.read_bytes())
            migrations.migrate(connection)
        granted(server.url())
        yield server


@contextmanager
def a_redis(place: Path) -> Iterator[GrantedRedis]:
    """Yield a server of its own."""
    place.mkdir()
    with reserved_port() as port, GrantedRedis(place, port=port) as server:
        yield server


def test_each_fault_fires_its_alerts_and_no_other_ones_and_they_clear(  # noqa: PLR0913, PLR0917 - fixtures
    sql: Connection[Any],
    role: str,
    postgres: Postgres,
    redis_server: GrantedRedis,
    redis: redis_py.Redis,
    tmp_path: Path,
) -> None:
    program("prometheus", rules.PACKAGE)  # or skip, before anything is started
    with ExitStack() as stack:
        enter = stack.enter_context

        def start(name: str, env: dict[str, str], *words: str) -> Process:
            return enter(Process(words, env, tmp_path / f"{name}.log"))

        busy = enter(a_busy_deployment(sql, role, redis, redis_server.url(), tmp_path))
        own_redis, own_postgres = enter(a_redis(tmp_path / "redis")), enter(a_postgres(tmp_path / "postgres"))
        urls = {
            "scheduler": (enter(a_database(postgres, f"{sql.info.dbname}_scheduler")), redis_server.url(1)),
            "redis": (enter(a_database(postgres, f"{sql.info.dbname}_redis")), own_redis.url()),
            "postgres": (own_postgres.url(user=ROLE), redis_server.url(2)),
        }
        env = {name: environment(*pair, **SLOWER) for name, pair in urls.items()}
        workers = {name: start(name, env[name], *WORKER) for name in env}
        schedulers = {name: start(name, env[name], *SCHEDULER) for name in env}
        second = start("scheduler", env["scheduler"], *WORKER)
        workers["busy"] = start("busy", busy.env, "sb-worker", "run")
        for worker in (*workers.values(), second):
            eventually(partial(knows_its_fleet, worker.ready()))
        places = {name: [f"127.0.0.1:{worker.port}"] for name, worker in workers.items()}
        places["scheduler"].append(f"127.0.0.1:{second.port}")
        prometheus = enter(Prometheus(tmp_path / "prometheus", places, rules.hurried(HURRY, SHORTEST, SHORTEST_RANGE)))
        until(prometheus, {WATCHDOG, OLDER_API})
        first = prometheus.has_fired()
        assert first <= {WATCHDOG, OLDER_API, NOTHING_YET}

        expected: set[Alert] = {WATCHDOG, OLDER_API}
        with ExitStack() as faults:
            for fault, alerts in FAULTS:
                faults.enter_context(fault(busy))
                expected |= {(alert, "busy", subject) for alert, subject in alerts}
            schedulers["scheduler"].end()
            second.end(signal.SIGKILL)
            own_redis.stop()
            own_postgres.stop()
            expected |= {(alert, name, "") for alert, name in SERVERS}
            expected |= {("SweepOverdue", name, task) for name in env for task in TASKS}
            until(prometheus, expected, more=True)
            texts = prometheus.texts()
            own_redis.start()
            own_postgres.start()
            start("scheduler", env["scheduler"], *SCHEDULER)
            start("scheduler", env["scheduler"] | {"SB_WORKER_LOCAL_ADDR": places["scheduler"][1]}, *WORKER)
        sql.execute("ALTER TABLE not_yet RENAME TO reveal_sessions")
        # As the file says: once the api has been upgraded, it is run again.
        granted = grant(postgres.url(sql.info.dbname), role)
        assert granted.returncode == 0, granted.stderr
        until(prometheus, {WATCHDOG})
        assert prometheus.has_fired() - first - PASSING == expected - first
        assert not [text for text in texts if "<no value" in text or "<error" in text]

        workers["redis"].end(signal.SIGKILL)
        gone = {("TargetDown", "redis", ""), ("NoReplica", "redis", "")}
        until(prometheus, gone | {WATCHDOG})
