"""`sb-worker why`: every way in which a slot can end, told in one sentence and by an exit status."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import redis as redis_py
from click.testing import CliRunner
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from app.cli.main import main
from app.core.values import format_duration
from app.demo.ports import reserved_port
from app.demo.servers import Redis
from app.overview.words import length
from app.sweeping.lock import lock_key
from tests.overview.ledger import Ledger
from tests.support.rows import column
from tests.support.slots import steady
from tests.support.waiting import HUNG, eventually

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
NAME = "wraps-expired"
Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def every() -> timedelta:
    """Return the cadence: of hours, so that times of a day name slots, and none of them ends while a test runs."""
    return steady(HOUR)


@pytest.fixture
def env(
    database: str, redis_server: Redis, redis: redis_py.Redis, every: timedelta, monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    del redis  # emptied
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("REDIS_URL", redis_server.url())
    monkeypatch.setenv("SB_SWEEP_WRAPS_INTERVAL", format_duration(every))
    return monkeypatch


@pytest.fixture
def ask(env: pytest.MonkeyPatch) -> Ask:
    """Return what asks about a slot and returns status and answer."""

    def asked(*words: str) -> tuple[int, dict[str, Any]]:
        result = CliRunner().invoke(main, ["why", NAME, *words, "-o", "json"])
        assert result.exit_code in (0, 1, 3), result.output
        return result.exit_code, json.loads(result.stdout)

    return asked


@pytest.fixture
def ledger(sql: Connection[Any], every: timedelta) -> Ledger:
    return Ledger(sql, NAME, every)


def told(answer: Mapping[str, Any]) -> str:
    return " | ".join((answer["answer"], *answer["facts"], *answer["next"]))


def test_ran(ask: Ask, ledger: Ledger) -> None:
    ledger.run(6)
    ledger.run(5, "failure")
    ledger.run(5, covered=2, changed=1234, counts={"deleted": 1234}, worker="pod-7:12")
    status, answer = ask(ledger.slot(5).isoformat())
    assert (status, answer["kind"], answer["served"]) == (0, "ran", "yes")
    assert "was run by pod-7:12: began" in answer["answer"]
    assert "10ms late, took 100ms, changed 1,234 rows" in answer["answer"]
    assert "attempt: " in told(answer)
    assert "failure LockNotAvailable 55P03" in told(answer)
    assert "it covers 2 slots before its own" in told(answer)
    assert "counts: deleted=1234" in told(answer)


def test_any_moment_of_the_slot_will_do_and_so_will_a_time_ago(ask: Ask, ledger: Ledger) -> None:
    ledger.run(5)
    for when in (
        (ledger.slot(5) + 59 * MINUTE).isoformat(),
        f"{ledger.slot(5) + MINUTE:%Y-%m-%d %H:%M}",
        f"{ledger.slot(5):%H:%M}",
        f"{5 * ledger.interval // MINUTE}m",
    ):
        assert ask(when)[1]["slot"] == ledger.slot(5).isoformat(), when


def test_run_by_hand(ask: Ask, ledger: Ledger) -> None:
    ledger.run(6)
    ledger.run(4.5, requested_by="anna \x1b[31m")
    status, answer = ask(ledger.slot(5).isoformat())
    assert (status, answer["kind"]) == (0, "by_hand")
    assert "by hand, for anna [31m" in answer["answer"]


def test_covered_and_why_there_was_no_run_of_its_own(ask: Ask, ledger: Ledger) -> None:
    ledger.run(9)
    ledger.run(5, "failure", error_class="PoolTimeout", sqlstate=None)
    ledger.run(3, covered=5)
    status, answer = ask(ledger.slot(5).isoformat())
    assert (status, answer["kind"]) == (0, "covered")
    assert "which covers 5 slots" in answer["answer"]
    assert "no run of its own: 1 attempt failed with PoolTimeout" in told(answer)


def test_a_later_run_that_does_not_cover_it_is_no_answer(ask: Ask, ledger: Ledger) -> None:
    ledger.run(9)
    ledger.run(3)
    status, answer = ask(ledger.slot(5).isoformat())
    assert (status, answer["kind"], answer["served"]) == (1, "unknown", "unknown")
    assert "sb-worker verify" in told(answer)


def test_interrupted_and_taken_over(ask: Ask, ledger: Ledger) -> None:
    ledger.run(5, "interrupted", worker="killed:1", changed=7, batches=2)
    assert ask(ledger.slot(5).isoformat())[0] == 3
    ledger.run(4)
    status, answer = ask(ledger.slot(5).isoformat())
    assert (status, answer["kind"]) == (0, "taken_over")
    assert f"was taken over by the run of slot {ledger.slot(4):%Y-%m-%d %H:%M:%S} UTC by host:1" in answer["answer"]
    assert "its run by killed:1" in told(answer)
    assert "changed 7 rows" in told(answer)


def test_being_run_now_or_begun_by_somebody_who_is_dead(
    ask: Ask, ledger: Ledger, redis: redis_py.Redis, env: pytest.MonkeyPatch
) -> None:
    ledger.run(0, "running", started_at=ledger.now, worker="pod-7:12")
    status, answer = ask()
    assert (status, answer["kind"]) == (3, "interrupted")
    assert "nobody holds its lock: its run is dead" in answer["answer"]
    redis.set(lock_key("secrets-bridge", NAME), "f" * 32, px=30_000)
    status, answer = ask()
    assert (status, answer["kind"]) == (3, "running")
    assert "is being run now by pod-7:12" in answer["answer"]
    with reserved_port() as port:
        env.setenv("REDIS_URL", f"redis://127.0.0.1:{port}")
        status, answer = ask()
    assert (status, answer["kind"]) == (3, "running")
    assert "Redis does not answer" in told(answer)


def test_the_lock_was_held_by_the_run_before(ask: Ask, ledger: Ledger) -> None:
    ledger.run(6, finished_at=ledger.slot(4.5))
    ledger.run(4, covered=1)
    status, answer = ask(ledger.slot(5).isoformat())
    assert (status, answer["kind"]) == (0, "covered")
    assert f"its lock was held by the run of slot {ledger.slot(6):%Y-%m-%d %H:%M:%S} UTC by host:1" in told(answer)
    assert f"{length(ledger.interval / 2)} into this slot" in told(answer)


def test_the_lock_was_held_by_a_stranger(ask: Ask, ledger: Ledger) -> None:
    ledger.run(6)
    ledger.obstacle(4.9, 4.2)
    status, answer = ask(ledger.slot(5).isoformat())
    assert (status, answer["kind"]) == (3, "foreign_lock")
    assert "held by somebody who is no run of ours" in answer["answer"]
    assert f"({length(ledger.interval * 0.7)})" in answer["answer"]
    ledger.run(4, covered=1)
    assert ask(ledger.slot(5).isoformat())[0] == 0


def test_the_lock_is_held_by_a_stranger_now(ask: Ask, ledger: Ledger, redis: redis_py.Redis) -> None:
    ledger.run(1)
    redis.set(lock_key("secrets-bridge", NAME), "f" * 32, px=30_000)
    status, answer = ask()
    assert (status, answer["kind"]) == (3, "locked")
    assert "more unless it is renewed by somebody who has no row in the ledger" in answer["answer"]


def test_no_scheduler_was_alive(ask: Ask, ledger: Ledger) -> None:
    ledger.run(9)
    ledger.process(20, None)
    ledger.process(20, 7, kind="scheduler", pid=2)
    ledger.process(3, None, kind="scheduler", pid=3, ticked_at=ledger.slot(0))
    status, answer = ask(ledger.slot(5).isoformat())
    assert (status, answer["kind"]) == (3, "no_tick")
    span = f"from {ledger.slot(7):%Y-%m-%d %H:%M:%S} UTC to {ledger.slot(3):%Y-%m-%d %H:%M:%S} UTC"
    assert f"no tick was sent: no scheduler was alive {span}" in answer["answer"]
    assert "alive then: 0 schedulers, 1 worker, 0 notifiers" in told(answer)
    assert ask(ledger.slot(2).isoformat())[1]["kind"] == "unknown"


def test_a_scheduler_was_alive_and_sent_nothing(ask: Ask, ledger: Ledger) -> None:
    ledger.run(9)
    ledger.process(20, None)
    ledger.process(20, None, kind="scheduler", pid=2, ticked_at=ledger.slot(6))
    status, answer = ask(ledger.slot(5).isoformat())
    assert (status, answer["kind"]) == (3, "no_tick")
    assert f"is alive and has sent its last one at {ledger.slot(6):%Y-%m-%d %H:%M:%S} UTC" in answer["answer"]


def test_no_worker_was_alive(ask: Ask, ledger: Ledger) -> None:
    ledger.run(9)
    ledger.process(20, None, kind="scheduler", pid=2, ticked_at=ledger.now)
    ledger.process(20, 8)
    status, answer = ask(ledger.slot(5).isoformat())
    assert (status, answer["kind"]) == (3, "no_worker")
    assert f"no worker was alive from {ledger.slot(8):%Y-%m-%d %H:%M:%S} UTC on" in answer["answer"]


def test_paused(ask: Ask, ledger: Ledger) -> None:
    ledger.run(9)
    ledger.pause(6, -2, by="anna", reason="index is built\n\x1b[2J")
    status, answer = ask()
    assert (status, answer["kind"]) == (3, "paused")
    until = f"{ledger.slot(-2):%Y-%m-%d %H:%M:%S} UTC"
    assert f"it is paused by anna until {until} because: index is built [2J" in answer["answer"]
    ledger.sql.execute("UPDATE secrets_bridge_worker.sweeper_pause SET resumed_at = %s", [ledger.slot(4)])
    assert "it was paused by anna" in ask(ledger.slot(5).isoformat())[1]["answer"]
    assert ask(ledger.slot(3).isoformat())[1]["kind"] == "unknown"


def test_braked(ask: Ask, ledger: Ledger) -> None:
    ledger.run(9)
    ledger.sql.execute(
        "UPDATE secrets_bridge_worker.sweep_state SET braked_at = %s, braked_for = 'usual', braked_rows = 90000",
        [ledger.slot(6)],
    )
    status, answer = ask(ledger.slot(5).isoformat())
    assert (status, answer["kind"]) == (3, "braked")
    assert "far more rows are due than usual, at least 90,000, since" in answer["answer"]


def test_off(ask: Ask, ledger: Ledger) -> None:
    result = CliRunner().invoke(main, ["why", "sessions-expired"])
    assert result.exit_code == 3
    assert "it is off; SB_SWEEP_SESSIONS_INTERVAL switches it on" in result.output
    ledger.run(9)
    ledger.process(20, None, cadences={}, off={NAME: "SB_SWITCH"})
    assert "it is off; SB_SWITCH switches it on" in ask()[1]["answer"]


def test_resting(ask: Ask, ledger: Ledger) -> None:
    ledger.run(9)
    ledger.sql.execute("ALTER TABLE secret_wraps RENAME TO away")
    status, answer = ask(ledger.slot(5).isoformat())
    assert (status, answer["kind"]) == (3, "resting")
    assert "secret_wraps is missing" in answer["answer"]


def test_failed_with_its_attempts(ask: Ask, ledger: Ledger) -> None:
    ledger.run(6)
    for _ in range(12):
        ledger.run(5, "failure", error_class="UndefinedColumn", sqlstate="42703", token=None)
    status, answer = ask(ledger.slot(5).isoformat())
    assert (status, answer["kind"]) == (3, "failed")
    assert "12 attempts failed, the last one with UndefinedColumn 42703" in answer["answer"]
    assert sum(fact.startswith("attempt: ") for fact in answer["facts"]) == 10
    assert "and 2 attempts more" in answer["facts"]
    assert answer["in_the_way"] == []


def test_who_blocks_it_is_named_by_process_and_by_nothing_of_its_own(ask: Ask, ledger: Ledger, database: str) -> None:
    ledger.run(1)
    ledger.run(0, "failure", started_at=ledger.now)
    url = make_conninfo(database, application_name="canary-application")
    with psycopg.connect(url) as other, psycopg.connect(database) as third:
        other.execute("LOCK TABLE secret_wraps IN SHARE MODE /* canary-query */")
        third.execute("LOCK TABLE agents IN SHARE MODE")
        status, answer = ask()
        assert (status, answer["kind"]) == (3, "failed")
        assert "waited in vain for a lock on one of secret_wraps" in answer["answer"]
        (blocker,) = answer["in_the_way"]
        assert (blocker["pid"], blocker["table"]) == (other.info.backend_pid, "secret_wraps")
        assert (blocker["state"], blocker["ours"], blocker["strong"]) == ("idle in transaction", False, True)
        text = CliRunner().invoke(main, ["why", NAME])
        assert f"process {other.info.backend_pid} of PostgreSQL keeps writers from secret_wraps" in text.output
        assert "canary" not in text.output + json.dumps(answer)


def test_who_holds_a_row_that_a_run_waits_for_is_named_while_it_waits(
    ask: Ask, ledger: Ledger, database: str, sql: Connection[Any]
) -> None:
    ledger.run(1)
    ledger.run(0, "failure", started_at=ledger.now)
    row = "SELECT FROM secrets_bridge_worker.sweep_state WHERE name = 'wraps-expired' FOR UPDATE"
    worker = make_conninfo(database, application_name="secrets-bridge-worker")
    waits = "SELECT pid FROM pg_locks WHERE NOT granted AND pid = ANY (ARRAY[{}])"
    with psycopg.connect(worker) as holder, psycopg.connect(worker) as waiter, ThreadPoolExecutor(1) as pool:
        holder.execute(row)
        waiting = pool.submit(waiter.execute, row)
        eventually(lambda: column(sql, waits.format(waiter.info.backend_pid)))
        _, answer = ask()
        pid = holder.info.backend_pid
        holder.rollback()
        waiting.result(HUNG)
    (blocker,) = [each for each in answer["in_the_way"] if each["seen"]]
    assert (blocker["pid"], blocker["table"]) == (pid, "secrets_bridge_worker.sweep_state")
    assert (blocker["state"], blocker["ours"]) == ("idle in transaction", True)


def test_what_this_role_may_not_see_is_said(
    ask: Ask, ledger: Ledger, database: str, role: str, env: pytest.MonkeyPatch
) -> None:
    ledger.run(1)
    ledger.run(0, "failure", started_at=ledger.now)
    for grant in ("USAGE ON SCHEMA", "SELECT ON ALL TABLES IN SCHEMA"):
        ledger.sql.execute(f"GRANT {grant} secrets_bridge_worker TO {role}".encode())
    env.setenv("DATABASE_URL", re.sub(r"//[^@/]*@", f"//{role}@", database))
    with psycopg.connect(database) as other:
        other.execute("LOCK TABLE secret_wraps IN SHARE MODE")
        pid = other.info.backend_pid
        text = CliRunner().invoke(main, ["why", NAME]).output
    assert f"process {pid} of PostgreSQL keeps writers from secret_wraps" in text
    assert "its state is not for this role to see (pg_read_all_stats); none of a worker's" in text


def test_a_time_before_the_first_run_or_before_what_is_kept(ask: Ask, ledger: Ledger) -> None:
    ledger.run(5)
    status, answer = ask(ledger.slot(8).isoformat())
    assert (status, answer["kind"]) == (3, "before_first")
    status, answer = ask("200h")
    assert (status, answer["kind"]) == (1, "too_old")
    assert "the ledger keeps 168h (SB_WORKER_LEDGER_RETENTION)" in told(answer)


def test_never_any_run(ask: Ask, ledger: Ledger) -> None:
    status, answer = ask()
    assert (status, answer["kind"]) == (3, "never_ran")
    assert "no process has given a sign of life" in told(answer)


def test_the_future_has_not_begun(ask: Ask, ledger: Ledger) -> None:
    status, answer = ask((ledger.slot(-3)).isoformat())
    assert (status, answer["kind"]) == (3, "future")


def test_the_cadence_of_then_is_told_by_processes(ask: Ask, ledger: Ledger) -> None:
    ledger.process(20, 4, cadences={NAME: 600.0})
    ledger.process(3, None, pid=2)
    ledger.run(5, slot=ledger.slot(5) + 10 * MINUTE)
    status, answer = ask((ledger.slot(5) + 12 * MINUTE).isoformat())
    assert (status, answer["slot"]) == (0, (ledger.slot(5) + 10 * MINUTE).isoformat())
    now = format_duration(ledger.interval)
    assert f"its slots are every 10m of then; now it is run every {now}" in told(answer)


@pytest.mark.parametrize("run", [True, False])
def test_a_slot_within_a_longer_one_of_another_process(ask: Ask, ledger: Ledger, run: bool) -> None:
    """Intervals of workers are changed one after the other: each counts by its own."""
    ledger.process(50, None)
    ledger.process(50, None, host="slow", cadences={NAME: (2 * ledger.interval).total_seconds()})
    even = next(ago for ago in (10, 11) if ledger.begins(ago, 2))
    ledger.run(even + 4)
    if run:
        ledger.run(even, covered=3)
    ledger.run(even - 2, worker="slow:1")
    status, answer = ask(ledger.slot(even - 1).isoformat())
    assert (status == 0, answer["kind"] == "within_another") == (run, run)
    if run:
        assert f"lies in slot {ledger.slot(even):%Y-%m-%d %H:%M:%S}" in answer["answer"]


@pytest.mark.parametrize(
    "when", ["yesterday", "25:00", "2026-13-01", "9999-12-31T23:59", "0001-01-01", "12345678h", "1O:00"]
)
def test_what_is_no_time_is_wrong_usage(env: pytest.MonkeyPatch, when: str) -> None:
    result = CliRunner().invoke(main, ["why", NAME, when])
    assert (result.exit_code, "not a time" in result.output) == (2, True)


def test_a_schema_of_an_older_release_is_told(env: pytest.MonkeyPatch, sql: Connection[Any]) -> None:
    sql.execute("DELETE FROM secrets_bridge_worker.schema_version WHERE version > 1")
    result = CliRunner().invoke(main, ["why", NAME])
    assert result.exit_code == 1
    assert "run `sb-worker migrate`" in result.output
