"""Which sweepers nobody runs, by the ledger, what keeps them from it, and the gauges of the deployment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import redis as redis_py
from psycopg import Connection
from psycopg_pool import ConnectionPool
from structlog.testing import capture_logs

from actors.wraps_expired import wraps_expired
from app.overview.gauges import FleetGauges
from app.overview.sources.standings import Watched
from app.overview.watch import FleetWatch
from tests.overview.signs_of_life import sign_of_life
from tests.support.replica import Replica
from tests.support.rights.acl import as_user
from tests.support.rows import FIXED, column, insert_wrap, rows
from tests.support.waiting import eventually

MINUTE = timedelta(minutes=1)
WRAPS = Watched("wraps-expired", "secret_wraps", MINUTE)


@pytest.fixture
def pool(database: str) -> Iterator[ConnectionPool[Connection[Any]]]:
    with ConnectionPool[Connection[Any]](
        database, kwargs={"autocommit": True}, min_size=0, max_size=1, timeout=0.2, open=True
    ) as pool:
        yield pool


def watching(
    pool: ConnectionPool[Connection[Any]], redis: redis_py.Redis, *watched: Watched, **more: Any
) -> FleetWatch:
    retention = more.pop("retention", timedelta(days=7))
    return FleetWatch(pool, as_user(redis), watched, namespace="secrets-bridge", retention=retention, **more)


def gauges(watch: FleetWatch) -> dict[str, dict[str, float]]:
    """Return every gauge: its samples by the value of their label."""
    return {
        family.name: {next(iter(sample.labels.values()), ""): sample.value for sample in family.samples}
        for family in FleetGauges(watch).collect()
    }


def newest(sql: Connection[Any], name: str, seconds: int) -> None:
    """Have the newest slot of a sweeper be so old."""
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_state (name, last_slot, previous_slot, token)"
        " VALUES (%(name)s, now() - make_interval(secs => %(age)s), 'epoch', 1)"
        " ON CONFLICT (name) DO UPDATE SET last_slot = excluded.last_slot",
        {"name": name, "age": seconds},
    )


def test_a_sweeper_is_overdue_from_the_end_of_its_slot_on(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    names = {"just-run": 30, "late": 100, "forgotten": 400}
    for name, age in names.items():
        newest(sql, name, age)
    watched = [Watched(name, "agents", MINUTE) for name in (*names, "never-ran")]
    watch = watching(pool, redis, *watched, Watched("resting", "no_such_table", MINUTE))
    with capture_logs() as logs:
        watch.look()
        watch.look()
    values = gauges(watch)["worker_sweep_overdue_seconds"]
    assert [values[name] for name in ("just-run", "never-ran", "resting")] == [0, 0, 0]
    assert 40 <= values["late"] < 100
    assert 340 <= values["forgotten"] < 400
    assert [(one["log_level"], one["task"], one["why"]) for one in logs if one.get("task") in values] == [
        ("warning", "forgotten", "no scheduler is alive")
    ]


def test_it_is_told_again_only_after_a_run(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    watch = watching(pool, redis, WRAPS)
    with capture_logs() as logs:
        for age in (1000, 2000, 100, 1, 1000):
            newest(sql, "wraps-expired", age)
            watch.look()
    assert [one["log_level"] for one in logs if one.get("task") == "wraps-expired"] == ["warning", "info", "warning"]


def test_without_a_database_it_goes_on_rising_and_says_nothing(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    newest(sql, "wraps-expired", 100)
    watch = watching(pool, redis, WRAPS)
    assert gauges(watch)["worker_fleet_gauges_age_seconds"][""] == math.inf
    watch.look()
    before = gauges(watch)
    pool.close()
    with capture_logs() as logs:
        watch.look()
    after = gauges(watch)
    for name, key in (("worker_sweep_overdue_seconds", "wraps-expired"), ("worker_fleet_gauges_age_seconds", "")):
        assert after[name][key] > before[name][key] > 0
    assert [one for one in logs if one.get("task") == "wraps-expired"] == []


@pytest.mark.parametrize("pause", ["paused", "braked"])
def test_nothing_is_overdue_while_it_is_not_to_run(
    pause: str, pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    newest(sql, "wraps-expired", 5000)
    if pause == "paused":
        sql.execute(
            "INSERT INTO secrets_bridge_worker.sweeper_pause (name, began_at, until, paused_by, reason)"
            " VALUES ('wraps-expired', now() - interval '100 s', now() + interval '1 h', 'me', 'a test')"
        )
    else:
        sql.execute("UPDATE secrets_bridge_worker.sweep_state SET braked_at = now(), braked_for = 'too_many_rows'")
    watch = watching(pool, redis, WRAPS)
    watch.look()

    shown = gauges(watch)
    assert shown["worker_sweep_overdue_seconds"]["wraps-expired"] == 0
    assert (shown["worker_sweep_paused_seconds"]["wraps-expired"] >= 100) == (pause == "paused")
    assert shown["worker_sweep_braked"]["wraps-expired"] == (pause == "braked")
    assert column(sql, "SELECT kind FROM secrets_bridge_worker.sweep_obstacle") == []


def test_after_a_pause_a_run_is_owed_an_interval_after_its_end(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    newest(sql, "wraps-expired", 5000)
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweeper_pause (name, began_at, until, paused_by, reason, resumed_at)"
        " VALUES ('wraps-expired', now() - interval '1 h', now() + interval '1 h', 'me', '', now() - interval '90 s')"
    )
    watch = watching(pool, redis, WRAPS)
    watch.look()

    assert 30 <= gauges(watch)["worker_sweep_overdue_seconds"]["wraps-expired"] < 90


def test_the_last_success_is_the_ledgers_whoever_is_asked_and_absent_before_the_first(
    replica: Replica, pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    settings = wraps_expired.settings.read()
    watch = watching(pool, redis, WRAPS)
    watch.look()
    assert gauges(watch)["worker_sweep_last_success_timestamp_seconds"] == {}
    replica.run(wraps_expired, settings)
    (began,) = column(sql, "SELECT extract(epoch FROM started_at)::float8 FROM secrets_bridge_worker.sweep_run")
    for one in (watch, watching(pool, redis, WRAPS)):  # one that has just been started, too
        one.look()
        assert gauges(one)["worker_sweep_last_success_timestamp_seconds"]["wraps-expired"] == pytest.approx(began)


def test_what_is_due_is_counted(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    for _ in range(3):
        insert_wrap(sql, FIXED)
    settings = wraps_expired.settings.read()
    watch = watching(pool, redis, WRAPS, counted=[(wraps_expired, settings)])
    watch.look()

    assert gauges(watch)["worker_sweep_backlog_rows"] == {"wraps-expired": 3}
    assert gauges(watch)["worker_sweep_expiry_lag_seconds"]["wraps-expired"] > 86400


def test_processes_are_counted_by_what_they_do_with_the_worst_of_their_clocks(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    sign_of_life(sql, "scheduler", ahead=-600, ticked=40)
    sign_of_life(sql, "worker", ahead=3, cadences={"wraps-expired": 60})
    sign_of_life(sql, "worker", queues=("sweeps", "sinks"), ahead=1, cadences={"wraps-expired": 30})
    sign_of_life(sql, "notifier", seen=60)
    watch = watching(pool, redis, WRAPS)
    watch.look()

    shown = gauges(watch)
    assert shown["worker_processes_alive"] == {"scheduler": 1, "worker": 2, "notifier": 1}
    assert shown["worker_processes_clock_skew_seconds"] == {"scheduler": 600, "worker": 3, "notifier": 1}
    assert 40 <= shown["worker_scheduler_tick_age_seconds"][""] < 100
    assert shown["worker_sweep_cadence_conflict"] == {"wraps-expired": 1}


def test_an_obstacle_is_one_row_an_episode_however_many_replicas_see_it(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    newest(sql, "wraps-expired", 5000)
    replicas = [watching(pool, redis, WRAPS) for _ in range(3)]
    for _ in range(3):
        for one in replicas:
            one.look()
        sql.execute("UPDATE secrets_bridge_worker.sweep_obstacle SET seen_at = seen_at - interval '10 s'")
    seen = "SELECT name, kind, seen_at - began_at > interval '-30 s' AS seen FROM secrets_bridge_worker.sweep_obstacle"
    assert rows(sql, seen) == [{"name": "wraps-expired", "kind": "no_scheduler", "seen": True}]

    sql.execute("UPDATE secrets_bridge_worker.sweep_obstacle SET seen_at = seen_at - interval '1 min'")
    replicas[0].look()
    assert column(sql, "SELECT count(*) FROM secrets_bridge_worker.sweep_obstacle") == [2]


def test_obstacles_of_long_ago_are_deleted_when_a_new_one_is_seen(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    newest(sql, "wraps-expired", 5000)
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_obstacle (name, kind, began_at, seen_at)"
        " VALUES ('wraps-expired', 'redis_away', now() - interval '2 h', now() - interval '1 h')"
    )
    watching(pool, redis, WRAPS, retention=timedelta(minutes=30)).look()

    assert column(sql, "SELECT kind FROM secrets_bridge_worker.sweep_obstacle") == ["no_scheduler"]


def test_a_strangers_lock_is_told_from_the_second_look_on_and_its_age_is_shown(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    newest(sql, "wraps-expired", 5000)
    sign_of_life(sql, "scheduler", ticked=1, cadences={"wraps-expired": 60})
    redis.set("secrets-bridge:lock:worker:sweeper:wraps-expired", "f" * 32, ex=600)
    watch = watching(pool, redis, WRAPS)
    watch.look()
    assert gauges(watch)["worker_sweep_lock_foreign_seconds"] == {"wraps-expired": 0}
    watch.look()
    assert column(sql, "SELECT kind FROM secrets_bridge_worker.sweep_obstacle") == ["foreign_lock"]
    sql.execute("UPDATE secrets_bridge_worker.sweep_obstacle SET began_at = began_at - interval '100 s'")
    watch.look()
    assert gauges(watch)["worker_sweep_lock_foreign_seconds"]["wraps-expired"] >= 100


def test_a_lock_of_a_run_that_is_under_way_is_no_strangers(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    newest(sql, "wraps-expired", 5000)
    sign_of_life(sql, "scheduler", ticked=1, cadences={"wraps-expired": 60})
    redis.set("secrets-bridge:lock:worker:sweeper:wraps-expired", "f" * 32, ex=600)
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_run (name, slot, worker, started_at, outcome)"
        " VALUES ('wraps-expired', now(), 'host:1', now(), 'running')"
    )
    watch = watching(pool, redis, WRAPS)
    watch.look()
    watch.look()
    assert column(sql, "SELECT kind FROM secrets_bridge_worker.sweep_obstacle") == []


def test_a_table_that_somebody_holds_is_an_obstacle(
    database: str, pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    newest(sql, "wraps-expired", 5000)
    sign_of_life(sql, "scheduler", ticked=1, cadences={"wraps-expired": 60})
    kinds = "SELECT kind FROM secrets_bridge_worker.sweep_obstacle"
    with psycopg.connect(database) as holder:
        holder.execute("LOCK TABLE secret_wraps IN ACCESS EXCLUSIVE MODE")
        watch = watching(pool, redis, WRAPS)

        def seen() -> list[Any]:
            watch.look()
            return column(sql, kinds)

        assert eventually(seen) == ["table_locked"]


@pytest.mark.parametrize(("ticked", "kinds"), [(1, []), (600, ["no_ticks"])])
def test_schedulers_that_send_no_ticks_are_an_obstacle(
    ticked: float, kinds: list[str], pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    newest(sql, "wraps-expired", 5000)
    sign_of_life(sql, "scheduler", seen=100, ticked=2000)  # one that is gone
    sign_of_life(sql, "scheduler", ticked=ticked, cadences={"wraps-expired": 60})
    watching(pool, redis, WRAPS).look()
    assert column(sql, "SELECT kind FROM secrets_bridge_worker.sweep_obstacle") == kinds


def test_a_redis_that_is_away_is_an_obstacle(pool: ConnectionPool[Connection[Any]], sql: Connection[Any]) -> None:
    newest(sql, "wraps-expired", 5000)
    sign_of_life(sql, "scheduler", ticked=1, cadences={"wraps-expired": 60})
    with redis_py.Redis.from_url("redis://127.0.0.1:1") as away:
        watching(pool, away, WRAPS).look()
    assert column(sql, "SELECT kind FROM secrets_bridge_worker.sweep_obstacle") == ["redis_away"]


def test_a_look_that_fails_as_nobody_foresaw_is_told_once_and_ends_nothing(
    pool: ConnectionPool[Connection[Any]], sql: Connection[Any], redis: redis_py.Redis
) -> None:
    newest(sql, WRAPS.name, 30)
    watch = watching(pool, redis, WRAPS)
    watch.watched = [WRAPS._replace(interval=timedelta.max)]  # no such moment can be reckoned
    with capture_logs() as logs:
        watch.look()
        watch.look()
        watch.watched = [WRAPS]
        watch.look()
        watch.watched = [WRAPS._replace(interval=timedelta.max)]
        watch.look()
    assert [one["error"] for one in logs if one["log_level"] == "error"] == ["OverflowError"] * 2
