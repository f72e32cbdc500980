"""Workers and schedulers as processes: what an operator starts, stops, and cuts off from its servers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
import redis as redis_py
from psycopg import Connection

from app.demo.ports import reserved_port
from app.demo.servers import Postgres, Redis
from app.storage import migrations
from tests.conftest import CONTROL_PLANE
from tests.support.processes import BIN, BY_FORK_SERVER, PATIENT, QUICK, SCHEDULER, WORKER, Process, environment
from tests.support.rights.grants import ROLE, as_role, granted
from tests.support.rows import column, insert_wrap, rows
from tests.support.waiting import HUNG, HUNG_PROCESS, eventually

RUNS = "SELECT * FROM secrets_bridge_worker.sweep_run ORDER BY id"
NOT_SENT = "tick not sent, Redis is away"
PAST = datetime(2026, 1, 1, tzinfo=UTC)
LOCK = "secrets-bridge:lock:worker:sweeper:wraps-expired"
SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.1); RETURN NULL; END $$;
CREATE TRIGGER slow AFTER DELETE ON secret_wraps FOR EACH STATEMENT EXECUTE FUNCTION slow();
"""
#: Keeps a batch open for as long as somebody else has the advisory lock.
HELD = """
CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$;
CREATE TRIGGER held AFTER DELETE ON secret_wraps FOR EACH STATEMENT EXECUTE FUNCTION held();
"""
IS_HELD = """
SELECT 1 FROM pg_locks JOIN pg_database ON pg_database.oid = database
 WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()
"""


@pytest.fixture
def env(database: str, redis: redis_py.Redis, redis_server: Redis) -> dict[str, str]:
    return environment(database, redis_server.url(), **QUICK | PATIENT)


@pytest.fixture
def worker(env: dict[str, str], tmp_path: Path) -> Iterator[Process]:
    with Process(WORKER, env, tmp_path / "worker.log") as process:
        yield process.ready()


@pytest.fixture
def scheduler(env: dict[str, str], tmp_path: Path) -> Iterator[Process]:
    with Process(SCHEDULER, env, tmp_path / "scheduler.log") as process:
        yield process


def backlog(sql: Connection[Any], count: int = 20_000) -> None:
    sql.execute(
        "INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,"
        " expires_at) SELECT '\\x01', '\\x02', '\\x03', 'k', '\\x04', 1, '2026-01-01' FROM generate_series(1, %s)",
        [count],
    )


def slow_backlog(sql: Connection[Any]) -> None:
    """Make a backlog that takes a run many batches of a tenth of a second."""
    backlog(sql)
    sql.execute(SLOW.encode())


def messages(process: Process, text: str) -> list[dict[str, Any]]:
    """Return the records that say this."""
    return [record for record in process.records if record["msg"] == text]


def answered(process: Process, status: int) -> httpx.Response | None:
    """Return the answer to a question for readiness, if it has this status; a check has less than a second for it."""
    answer = process.get("/readyz")
    return answer if answer.status_code == status else None


def test_a_scheduler_and_a_worker_sweep_and_tell(
    worker: Process, scheduler: Process, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    insert_wrap(sql, expires_at=PAST)
    eventually(lambda: column(sql, "SELECT count(*) FROM secret_wraps") == [0])
    eventually(lambda: worker.metric("worker_scheduler_runs_total", outcome="success") >= 4)

    assert worker.get("/healthz").text == '{"status":"ok"}'
    ready = eventually(lambda: answered(worker, 200))
    assert (ready.text, ready.headers["content-type"]) == ('{"status":"ready"}\n', "application/json")
    told = eventually(lambda: messages(worker, "notification"))
    assert [(record["level"], record["component"], record["title"], record["deleted"]) for record in told] == [
        ("INFO", "wraps-expired", "expired wraps purged", 1)
    ]
    assert {"time", "level", "msg"} <= worker.records[0].keys()
    assert list(worker.records[0])[:3] == ["time", "level", "msg"]
    unset = [record["task"] for record in worker.records if "not configured" in record["msg"]]
    assert sorted(unset) == ["gitops-poller", "gitops-timeout", "sessions-expired"]
    (unserved,) = messages(worker, "the api has features that this worker does not serve")
    assert unserved["off"] == [
        "gitops-poller (SB_WORKER_GITOPS_ENABLED)",
        "gitops-timeout (SB_WORKER_GITOPS_ENABLED)",
        "sessions-expired (SB_SWEEP_SESSIONS_INTERVAL)",
    ]


def test_every_series_is_there_from_the_start_with_the_go_workers_names(worker: Process) -> None:
    text = worker.get("/metrics").text
    tasks = ("wraps-expired", "agents-stale", "reveal-sessions-expired", "cross-team-fill-window-expired")
    for task in tasks:
        for outcome in ("success", "failure", "skipped_lock"):
            assert f'worker_scheduler_runs_total{{outcome="{outcome}",task="{task}"}} 0.0' in text
        assert f'worker_scheduler_lock_skipped_total{{task="{task}"}} 0.0' in text
        assert f'worker_scheduler_run_duration_seconds_count{{task="{task}"}} 0.0' in text
        for ours in ("rows_changed", "batches", "lease_lost", "fenced_batches", "interrupted", "handed_over"):
            assert f'worker_sweep_{ours}_total{{task="{task}"}} 0.0' in text
    edges = [".005", ".01", ".025", ".05", ".1", ".25", ".5", "1", "2.5", "5", "10"]
    for edge in edges:
        assert f'worker_scheduler_run_duration_seconds_bucket{{le="{float(edge):g}",task="wraps-expired"}}' in text
    assert 'le="7.5"' not in text.replace("dramatiq_message_duration", "")
    assert "_created" not in text
    assert 'worker_build_info{version="' in text
    assert "process_resident_memory_bytes" in text


def test_dramatiqs_own_metrics_are_there_and_no_gauge_is_negative(
    worker: Process, scheduler: Process, env: dict[str, str], tmp_path: Path
) -> None:
    with Process(WORKER, env, tmp_path / "second.log") as second, Process(SCHEDULER, env, tmp_path / "s2.log"):
        second.ready()
        eventually(lambda: second.metric("worker_scheduler_lock_skipped_total") >= 3)
        eventually(lambda: worker.metric("dramatiq_messages_total", queue_name="sweeps") >= 8)
        for process in (worker, second):
            text = process.get("/metrics").text
            values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("dramatiq_")]
            assert min(map(float, values)) >= 0
            assert "WARN" not in {record["level"] for record in process.records if "skip" in record["msg"]}


def test_several_processes_of_one_command_answer_together(env: dict[str, str], tmp_path: Path) -> None:
    words = ("dramatiq", "app.actors", "--processes", "3", "--threads", "2")
    with (
        Process(words, env, tmp_path / "workers.log") as workers,
        Process(SCHEDULER, env, tmp_path / "scheduler.log"),
    ):
        workers.ready()
        eventually(lambda: workers.metric("worker_scheduler_runs_total", outcome="success") >= 12)
        assert workers.end() == 0
    assert workers.text.count('"msg": "shutdown complete"') == 3


def test_sigterm_ends_between_batches_and_releases_the_lock(
    worker: Process, sql: Connection[Any], redis: redis_py.Redis, env: dict[str, str], tmp_path: Path
) -> None:
    slow_backlog(sql)
    more = {**env, "SB_WORKER_SWEEP_BUDGET": "1h", "SB_SWEEP_WRAPS_INTERVAL": "1h"}
    worker.end()
    with Process(WORKER, more, tmp_path / "slow.log") as slow, Process(SCHEDULER, more, tmp_path / "s.log"):
        slow.ready()
        eventually(
            lambda: (
                redis.exists(LOCK)
                and column(sql, "SELECT coalesce(max(batches), 0) FROM secrets_bridge_worker.sweep_run") > [1]
            )
        )
        assert slow.end() == 0
        assert redis.exists(LOCK) == 0
    run = next(run for run in rows(sql, RUNS) if run["name"] == "wraps-expired" and run["changed"])
    assert (run["outcome"], run["handed_over"]) == ("success", True)
    assert run["changed"] + column(sql, "SELECT count(*) FROM secret_wraps")[0] == 20_000


def test_a_second_sigterm_does_not_cut_a_run(
    sql: Connection[Any], redis: redis_py.Redis, env: dict[str, str], tmp_path: Path
) -> None:
    slow_backlog(sql)
    more = {**env, "SB_WORKER_SWEEP_BUDGET": "1h", "SB_SWEEP_WRAPS_INTERVAL": "1h"}
    with Process(WORKER, more, tmp_path / "slow.log") as slow, Process(SCHEDULER, more, tmp_path / "s.log"):
        slow.ready()
        eventually(lambda: redis.exists(LOCK))
        (child,) = slow.workers
        slow.popen.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGTERM)
        assert slow.popen.wait(HUNG_PROCESS) == 0
    assert {run["outcome"] for run in rows(sql, RUNS)} == {"success"}


def test_readiness_turns_first(
    sql: Connection[Any], redis: redis_py.Redis, env: dict[str, str], tmp_path: Path
) -> None:
    backlog(sql)
    sql.execute(HELD.encode())
    sql.execute("SELECT pg_advisory_lock(1)")
    more = {**env, "SB_SWEEP_WRAPS_INTERVAL": "1h", "SB_WORKER_LOCK_LEASE": "10m"}  # and a lock is waited for 100 s
    with Process(WORKER, more, tmp_path / "slow.log") as slow, Process(SCHEDULER, more, tmp_path / "s.log"):
        slow.ready()
        eventually(lambda: column(sql, IS_HELD))
        slow.popen.send_signal(signal.SIGTERM)
        eventually(lambda: answered(slow, 503))
        assert slow.get("/healthz").status_code == 200
        sql.execute("SELECT pg_advisory_unlock(1)")
        assert slow.popen.wait(HUNG_PROCESS) == 0


def test_a_killed_main_process_leaves_no_orphan(worker: Process) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("only Linux tells a child of its parent's death")
    children = psutil.Process(worker.popen.pid).children(recursive=True)
    assert children
    worker.popen.kill()
    worker.popen.wait()
    _, alive = psutil.wait_procs(children, timeout=HUNG)
    assert alive == []


@pytest.mark.parametrize("after", [0.0, 0.3, 0.6])
def test_a_main_process_that_is_killed_while_its_child_boots_leaves_no_orphan(
    env: dict[str, str], tmp_path: Path, after: float
) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("only Linux tells a child of its parent's death")
    with Process(WORKER, env, tmp_path / "worker.log") as worker:
        workers = eventually(lambda: worker.workers)
        time.sleep(after)  # to hit several moments of the boot; which ones does not matter
        worker.popen.kill()
        worker.popen.wait()
        _, alive = psutil.wait_procs(workers, timeout=HUNG)
    assert alive == []


def test_a_probe_address_that_is_taken_stops_the_boot(worker: Process, env: dict[str, str], tmp_path: Path) -> None:
    taken = {**env, "SB_WORKER_LOCAL_ADDR": f"127.0.0.1:{worker.port}"}
    with Process(WORKER, taken, tmp_path / "second.log") as second:
        assert second.popen.wait(HUNG_PROCESS) == 1
        assert f"SB_WORKER_LOCAL_ADDR: 127.0.0.1:{worker.port} cannot be listened on" in second.text


def test_an_outage_of_redis_is_outlived_by_all(
    worker: Process, scheduler: Process, sql: Connection[Any], redis_server: Redis
) -> None:
    count = "SELECT count(*) FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success'"
    eventually(lambda: column(sql, count) > [4])
    redis_server.kill()
    try:
        eventually(lambda: messages(scheduler, NOT_SENT))
        eventually(lambda: "Redis is away" in worker.text)
        assert worker.get("/healthz").status_code == 200
        eventually(lambda: worker.get("/readyz").json().get("failing") == {"redis": "unreachable"})
        (since,) = column(sql, "SELECT date_trunc('second', clock_timestamp())")
        passed = "SELECT clock_timestamp() - %s > interval '3 s'"  # so that ticks of several slots are lost
        eventually(lambda: sql.execute(passed, [since]).fetchone() == (True,))
        before = column(sql, count)
    finally:
        redis_server.start()
    eventually(lambda: column(sql, count) > before)
    assert worker.popen.poll() is None
    assert scheduler.popen.poll() is None
    eventually(lambda: len(messages(scheduler, "ticks go out again")) >= 4)
    lost = sum(record["lost"] for record in messages(scheduler, "ticks go out again"))
    assert len(messages(scheduler, NOT_SENT)) < lost  # a line an outage, however many there are
    eventually(lambda: worker.metric("worker_scheduler_ticks_lost_total") >= 4)


def test_an_outage_of_postgres_fails_runs_and_no_process(
    tmp_path: Path, redis: redis_py.Redis, redis_server: Redis
) -> None:
    directory = tmp_path / "own"
    directory.mkdir()
    with reserved_port() as port, Postgres(directory, port=port) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(CONTROL_PLANE.read_bytes())
            migrations.migrate(connection)
        env = environment(granted(server.url()), redis_server.url(), **QUICK)
        with (
            Process(WORKER, env, tmp_path / "worker.log") as worker,
            Process(SCHEDULER, env, tmp_path / "scheduler.log") as scheduler,
        ):
            worker.ready()
            eventually(lambda: worker.metric("worker_scheduler_runs_total", outcome="success") >= 4)
            server.crash()
            eventually(lambda: worker.metric("worker_scheduler_runs_total", outcome="failure") >= 4)
            eventually(lambda: worker.get("/readyz").json().get("failing", {}).keys() == {"postgres"})
            assert worker.get("/healthz").status_code == 200
            server.start()
            before = worker.metric("worker_scheduler_runs_total", outcome="success")
            eventually(lambda: worker.metric("worker_scheduler_runs_total", outcome="success") > before + 4)
            told = messages(worker, "notification")
            titles = [record["title"] for record in told if record["level"] == "ERROR"]
            assert len(titles) == len(set(titles)) <= 8  # one a sweeper, however many attempts failed
            assert (worker.end(), scheduler.end()) == (0, 0)
        # Digits of a time, of an id or of a process's number may be the same.
        assert not re.search(rf"(?<![.\w]){port}(?!\w)", re.sub(rf'"pid": ?{port}\b', "", worker.text))


def test_a_scheduler_ends_with_status_0_on_sigterm_and_starts_without_redis(
    env: dict[str, str], tmp_path: Path, redis_server: Redis
) -> None:
    away = {**env, "REDIS_URL": "redis://127.0.0.1:1/0"}
    with Process(SCHEDULER, away, tmp_path / "s.log") as scheduler:
        eventually(lambda: messages(scheduler, NOT_SENT))
        assert scheduler.end() == 0


def test_a_retry_comes_after_the_lock_is_free_and_before_the_next_tick(
    env: dict[str, str], tmp_path: Path, sql: Connection[Any]
) -> None:
    hour = {**env, "SB_SWEEP_AGENTS_INTERVAL": "1h"}  # so that it cannot be the next tick
    sql.execute("ALTER TABLE agents RENAME COLUMN status TO state")
    with Process(WORKER, hour, tmp_path / "w.log") as worker, Process(SCHEDULER, hour, tmp_path / "s.log"):
        worker.ready()
        failed = (
            "SELECT count(*) FROM secrets_bridge_worker.sweep_run WHERE name = 'agents-stale' AND outcome = 'failure'"
        )
        eventually(lambda: column(sql, failed) >= [2])
        sql.execute("ALTER TABLE agents RENAME COLUMN state TO status")
        eventually(
            lambda: column(
                sql,
                "SELECT 1 FROM secrets_bridge_worker.sweep_run WHERE name = 'agents-stale' AND outcome = 'success'",
            )
        )
        wanted = ["flag stale agents failed", "sweep recovered"]
        eventually(lambda: [record["title"] for record in messages(worker, "notification")] == wanted)
        assert "Traceback" not in worker.text


def test_nothing_that_must_not_be_seen_is_seen_anywhere(
    database: str, sql: Connection[Any], redis: redis_py.Redis, redis_server: Redis, tmp_path: Path
) -> None:
    """Plant canaries in rows, in both URLs and in the targets, let everything succeed and fail at DEBUG, and look."""
    sql.execute(
        "INSERT INTO secret_wraps (encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash, byte_length,"
        " expires_at) SELECT 'canary', 'canary', 'canary', 'canary-key', 'canary', 1, '2026-01-01'"
    )
    sql.execute("INSERT INTO agents (name, secret_hash, last_seen_at) VALUES ('canary-agent', 'canary', '2026-01-01')")
    sql.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no: %', NEW USING DETAIL = NEW::text; END $$"
    )
    sql.execute("CREATE TRIGGER refuse BEFORE UPDATE ON agents FOR EACH ROW EXECUTE FUNCTION refuse()")
    sql.execute("CREATE TRIGGER refuse BEFORE INSERT ON sync_jobs FOR EACH ROW EXECUTE FUNCTION refuse()")
    env = environment(
        as_role(database, f"{ROLE}:canary-password"),
        redis_server.url() + "?client_name=canary-client",
        **QUICK,
        LOG_LEVEL="debug",
        SB_DISCOVER_TARGETS_JSON='[{"name": "t", "cluster": "canary-cluster", "provider": "vault"}]',
    )
    with (
        Process(WORKER, env, tmp_path / "worker.log") as worker,
        Process(SCHEDULER, env, tmp_path / "scheduler.log") as scheduler,
    ):
        worker.ready()
        eventually(lambda: worker.metric("worker_scheduler_runs_total", outcome="success", task="wraps-expired") >= 2)
        eventually(lambda: worker.metric("worker_sweep_rows_failed_total", task="agents-stale") >= 2)
        eventually(
            lambda: worker.metric("worker_scheduler_runs_total", outcome="failure", task="discover-scheduler") >= 2
        )
        seen = [worker.get("/metrics").text, worker.get("/readyz").text]
        seen += [repr((key, redis.dump(key))) for key in redis.scan_iter("*")]
        seen += [
            repr(rows(sql, f"SELECT * FROM secrets_bridge_worker.{table}")) for table in ("sweep_run", "sweep_state")
        ]
        assert (worker.end(), scheduler.end()) == (0, 0)
        seen += [worker.text, scheduler.text]
    assert [text for text in seen if "canary" in text] == []
    assert "RaiseException" in worker.text
    assert "one target failed, the others go on" in worker.text


def test_a_table_that_appears_brings_its_sweeper_to_life(
    worker: Process, scheduler: Process, sql: Connection[Any]
) -> None:
    eventually(lambda: worker.metric("worker_scheduler_runs_total", outcome="success", task="agents-stale") >= 1)
    sql.execute("ALTER TABLE agents RENAME TO elsewhere")
    eventually(lambda: worker.metric("worker_sweep_table_missing", task="agents-stale") == 1)
    sql.execute("ALTER TABLE elsewhere RENAME TO agents")
    eventually(lambda: worker.metric("worker_sweep_table_missing", task="agents-stale") == 0)
    warned = [record for record in worker.records if "table is missing" in record["msg"]]
    assert len(warned) == 1


# Everything but /dev/shm is read-only, as in the container; `nobody` stands for its user.
READ_ONLY = """
mount --bind / / && mount -o remount,bind,ro / || exit 99
mount -t tmpfs -o mode=1777 tmpfs /dev/shm || exit 99
exec "$@"
"""


def test_a_worker_writes_to_dev_shm_only(env: dict[str, str], tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or os.getuid() != 0:
        pytest.skip("needs root on Linux, to make a file system read-only for one process")
    words = (unshare, "--mount", "bash", "-c", READ_ONLY, "bash", str(BIN / WORKER[0]), *WORKER[1:])
    temporary = "/dev/shm" if BY_FORK_SERVER else "/nonexistent"  # a fork server has a socket there
    with (
        Process(words, {**env, "TMPDIR": temporary}, tmp_path / "worker.log") as worker,
        Process(SCHEDULER, env, tmp_path / "scheduler.log"),
    ):
        eventually(lambda: worker.popen.poll() is not None or worker.get("/readyz").status_code == 200)
        if worker.popen.poll() == 99:
            pytest.skip("this machine does not let root mount")
        eventually(lambda: worker.metric("worker_scheduler_runs_total", outcome="success") >= 4)
        assert worker.end() == 0
