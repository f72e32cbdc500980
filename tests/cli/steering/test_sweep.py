"""`sb-worker sweep`: what it does, what it says, and how it is stopped."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from psycopg import Connection

from app.demo.servers import Redis
from app.sweeping.steering import pauses
from tests.cli.steering.conftest import Run
from tests.support.http_server import Receiver
from tests.support.processes import BIN, PATIENT, ROOT, WORKER, Process, environment
from tests.support.rows import FIXED, column, insert_agent, insert_wrap, rows
from tests.support.waiting import HUNG_PROCESS, eventually

RUNS = "SELECT * FROM secrets_bridge_worker.sweep_run ORDER BY id"
KEY = "secrets-bridge:lock:worker:sweeper:wraps-expired"
LOCAL = {"SB_NOTIFICATION_ALLOWED_NETWORKS": "127.0.0.0/8"}
WRAPS = """
INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,
                          expires_at)
SELECT '\\x01', '\\x02', '\\x03', 'k', '\\x04', 1, '2026-01-01' FROM generate_series(1, {rows})
"""


def expired(sql: Connection[Any], number: int) -> None:
    sql.execute(WRAPS.format(rows=number).encode())


def test_it_runs_a_sweeper_now_and_says_what_it_did(run: Run, sql: Connection[Any], redis: redis_py.Redis) -> None:
    expired(sql, 1234)
    done = run("sweep", "wraps-expired")
    assert (done.returncode, done.stdout, done.stderr) == (0, "wraps-expired: 1,234 changed\n", "")
    (row,) = rows(sql, RUNS)
    assert (row["outcome"], row["changed"]) == ("success", 1234)
    assert "@" in row["requested_by"]
    assert redis.get(KEY) is None
    again = run("sweep", "wraps-expired", "--json")
    assert json.loads(again.stdout) == {
        "sweeper": "wraps-expired",
        "run": row["id"] + 1,
        "covered": 0,
        "handed_over": False,
        "skipped_locked": 0,
        "changed": 0,
    }


def test_its_events_are_notified_as_any_runs(  # noqa: PLR0913, PLR0917 - fixtures
    database: str, redis_server: Redis, redis: redis_py.Redis, sql: Connection[Any], run: Run, tmp_path: Path
) -> None:
    insert_agent(sql, "silent", last_seen_at=FIXED)
    with Receiver() as receiver:
        env = {**LOCAL, "SB_NOTIFICATION_WEBHOOK_URL": receiver.url}
        assert run("sweep", "agents-stale", **env).returncode == 0
        assert redis.llen("dramatiq:sinks") == 1  # the notifier need not wait for the relay
        whole = environment(database, redis_server.url(), **env)
        with Process((*WORKER, "--queues", "sinks"), whole, tmp_path / "notifier"):
            eventually(lambda: receiver.seen)
    assert receiver.seen[0].json["component"] == "agents-stale"


def test_it_says_who_holds_the_lock_and_gives_up(run: Run, sql: Connection[Any], redis: redis_py.Redis) -> None:
    redis.set(KEY, "f" * 32)
    done = run("sweep", "wraps-expired", "--wait", "0s")
    assert done.returncode == 1
    held, given_up = done.stderr.splitlines()
    assert held == "wraps-expired: its lock is held by somebody who is no run of ours; waiting for 0s at most"
    assert given_up.startswith("error: wraps-expired was not run, its lock was held for 0s")
    sql.execute(
        "INSERT INTO secrets_bridge_worker.sweep_run (name, slot, worker, started_at, outcome)"
        " VALUES ('wraps-expired', '2026-01-01Z', 'host-7:42', '2026-01-01 12:00Z', 'running')"
    )
    done = run("sweep", "wraps-expired", "--wait", "0s")
    assert "held by host-7:42, as far as the ledger knows, since 2026-01-01 12:00:00Z;" in done.stderr
    assert len(rows(sql, RUNS)) == 1


def test_what_keeps_it_from_running_is_told(run: Run, sql: Connection[Any], redis: redis_py.Redis) -> None:
    off = run("sweep", "sessions-expired")
    assert (off.returncode, off.stderr) == (
        1,
        "error: sessions-expired is off; SB_SWEEP_SESSIONS_INTERVAL switches it on\n",
    )
    sql.execute("ALTER TABLE agents RENAME TO elsewhere")
    missing = run("sweep", "agents-stale")
    assert (missing.returncode, missing.stderr) == (1, "error: agents-stale rests, the api's agents is not there\n")
    dry = run("sweep", "agents-stale", "--dry-run")
    assert (dry.returncode, dry.stderr) == (missing.returncode, missing.stderr)
    (pause,) = pauses.pause(sql, ["wraps-expired"], timedelta(hours=1), "ann@desk", "an import")
    paused = run("sweep", "wraps-expired")
    until = f"{pause.until:%Y-%m-%d %H:%M:%SZ}"
    assert paused.returncode == 1
    assert paused.stderr == (
        f"error: wraps-expired is paused by ann@desk until {until}: an import; --paused runs it all the same\n"
    )
    assert rows(sql, RUNS) == []
    assert run("sweep", "wraps-expired", "--paused").returncode == 0
    assert run("sweep", "nobody").returncode == 2
    assert run("sweep", "wraps-expired", "--wait", "soon").returncode == 2
    assert run("sweep", "wraps-expired", "--dry-run", "--approve").returncode == 2


def test_a_failure_is_a_class_and_an_sqlstate(run: Run, sql: Connection[Any], redis: redis_py.Redis) -> None:
    sql.execute("ALTER TABLE agents RENAME COLUMN status TO canary")
    for words in (("sweep", "agents-stale"), ("sweep", "agents-stale", "--dry-run")):
        done = run(*words)
        assert done.returncode == 1
        assert "UndefinedColumn 42703" in done.stderr
        assert "canary" not in done.stderr + done.stdout
    assert [row["outcome"] for row in rows(sql, RUNS)] == ["failure"]
    assert redis.get("secrets-bridge:lock:worker:sweeper:agents-stale") is None


def test_a_brake_is_told_and_let_go_by_who_approves(run: Run, sql: Connection[Any], redis: redis_py.Redis) -> None:
    expired(sql, 100)
    brake = {"SB_SWEEP_WRAPS_BRAKE": "50%,never"}
    held = run("sweep", "wraps-expired", **brake)
    assert held.returncode == 1
    assert held.stderr.splitlines()[-1].startswith(
        "error: wraps-expired is braked: a large share of the table is due, at least 51, since "
    )
    assert held.stderr.endswith("; --approve runs it all the same\n")
    assert run("sweep", "wraps-expired", "--dry-run", **brake).stdout.startswith("wraps-expired: a run would have 100 ")
    assert run("sweep", "wraps-expired", "--approve", **brake).stdout == "wraps-expired: 100 changed\n"


def test_rows_that_are_left_are_told(run: Run, sql: Connection[Any], redis: redis_py.Redis) -> None:
    expired(sql, 4000)
    done = run("sweep", "wraps-expired", SB_WORKER_SWEEP_BUDGET="1ms")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "wraps-expired: not all is done; the next run goes on from here"


def test_a_dry_run_says_what_would_change_and_since_when_it_is_due(
    run: Run, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    insert_wrap(sql, FIXED)
    done = run("sweep", "wraps-expired", "--dry-run")
    assert done.stdout == (
        "wraps-expired: a run would have 1 changed; nothing was changed\n"
        "wraps-expired: the oldest has been due since 2026-01-01 12:00:00Z\n"
    )
    assert json.loads(run("sweep", "wraps-expired", "--dry-run", "--json").stdout) == {
        "sweeper": "wraps-expired",
        "dry_run": True,
        "changed": 1,
        "at_least": False,
        "due_since": "2026-01-01T12:00:00+00:00",
    }
    assert (rows(sql, RUNS), redis.keys("*")) == ([], [])
    assert column(sql, "SELECT count(*) FROM secret_wraps") == [1]


def started(database: str, redis_server: Redis, *words: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [BIN / "sb-worker", *words],
        cwd=ROOT,
        env=environment(database, redis_server.url(), **PATIENT, SB_WORKER_SWEEP_BUDGET="1h"),
        stdin=subprocess.DEVNULL,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
    )


SLOWLY = """
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_sleep({seconds}); RETURN OLD; END $$;
CREATE TRIGGER slowly BEFORE DELETE ON secret_wraps FOR EACH ROW EXECUTE FUNCTION slowly();
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_it_between_two_steps_and_hands_over(
    database: str, redis_server: Redis, redis: redis_py.Redis, sql: Connection[Any], number: signal.Signals
) -> None:
    expired(sql, 3000)
    sql.execute(SLOWLY.format(seconds=0.002).encode())
    with started(database, redis_server, "sweep", "wraps-expired") as process:
        eventually(lambda: column(sql, "SELECT 1 FROM secrets_bridge_worker.sweep_run WHERE batches > 0"))
        process.send_signal(number)
        out, err = process.communicate(timeout=HUNG_PROCESS)
    assert process.returncode == 128 + number
    assert err == "wraps-expired: stopped; the next run goes on from here\n"
    assert out.endswith("wraps-expired: not all is done; the next run goes on from here\n")
    (row,) = rows(sql, RUNS)
    assert (row["outcome"], row["handed_over"]) == ("success", True)
    assert 0 < row["changed"] < 3000
    assert redis.get(KEY) is None


def test_a_second_stop_cuts_the_step(
    database: str, redis_server: Redis, redis: redis_py.Redis, sql: Connection[Any]
) -> None:
    expired(sql, 1)
    sql.execute(SLOWLY.format(seconds=600).encode())
    asleep = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    with started(database, redis_server, "sweep", "wraps-expired") as process:
        eventually(lambda: column(sql, asleep))
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=HUNG_PROCESS)
    assert process.returncode in {130, 143}  # whichever the system delivers first
    assert "Traceback" not in err
    assert column(sql, "SELECT count(*) FROM secret_wraps") == [1]
    assert redis.get(KEY) is None


def test_a_stop_ends_the_wait_for_a_lock(
    database: str, redis_server: Redis, redis: redis_py.Redis, sql: Connection[Any]
) -> None:
    redis.set(KEY, "f" * 32)
    with started(database, redis_server, "sweep", "wraps-expired", "--wait", "1h") as process:
        assert process.stderr is not None
        assert "waiting for 1h" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HUNG_PROCESS)
    assert (process.returncode, err) == (
        130,
        "wraps-expired: stopped while it waited for its lock; nothing was run\n",
    )
    assert rows(sql, RUNS) == []


def test_on_a_terminal_it_shows_how_far_it_has_come(
    database: str, redis_server: Redis, redis: redis_py.Redis, sql: Connection[Any]
) -> None:
    expired(sql, 1500)
    sql.execute(SLOWLY.format(seconds=0.001).encode())
    ours, theirs = pty.openpty()
    with started(database, redis_server, "sweep", "wraps-expired", stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
        out, _ = process.communicate(timeout=HUNG_PROCESS)
    os.close(ours)
    assert (process.returncode, out) == (0, "wraps-expired: 1,500 changed\n")
    assert b"changed in" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other side is closed
        return b""
