"""Notifications through real processes: sweeps, outbox, Redis, notifier, receivers."""

from __future__ import annotations

import json
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker
from psycopg import Connection
from psycopg.rows import dict_row

from app.demo.servers import Redis
from app.worker.assembly import DELIVER
from bench.notify import event, flipped, outbox
from tests.support import http_server
from tests.support.http_server import Receiver, Reply, Rude, Seen
from tests.support.processes import PATIENT, QUICK, SCHEDULER, WORKER, Process, environment, finished
from tests.support.rows import FIXED, column, insert_agent, insert_wrap, rows
from tests.support.waiting import HUNG, HUNG_PROCESS, eventually

SWEEPER = (*WORKER, "--queues", "sweeps")
NOTIFIER = (*WORKER, "--queues", "sinks")
IMPATIENT = {
    "SB_NOTIFICATION_ALLOWED_NETWORKS": "127.0.0.0/8",
    "SB_NOTIFICATION_RELAY_INTERVAL": "1s",
    "SB_NOTIFICATION_BREAKER_COOLDOWN": "1s",
    "SB_NOTIFICATION_REPEAT_INTERVAL": "0s",
    "SB_NOTIFICATION_PACE": "0s",
}
HUNG_ATTEMPTS = (
    "SELECT count(*) FROM secrets_bridge_worker.notification_delivery WHERE lease_until > now() AND finished_at IS NULL"
)
STATES = "SELECT state FROM secrets_bridge_worker.notification_delivery"


@pytest.fixture
def env(database: str, redis_server: Redis, redis: redis_py.Redis) -> dict[str, str]:
    return environment(database, redis_server.url(), **QUICK | PATIENT | IMPATIENT)


def _more(receiver: Receiver, than: int) -> bool:
    return len(receiver.seen) > than


def test_a_sweep_is_told_to_every_sink(env: dict[str, str], tmp_path: Path, sql: Connection[Any]) -> None:
    with Receiver() as receiver:
        env |= {"SB_NOTIFICATION_WEBHOOK_URL": f"{receiver.url}/hook", "SB_NOTIFICATION_SLACK_URL": f"{receiver.url}/s"}
        insert_agent(sql, "silent", last_seen_at=FIXED)
        with (
            Process(SWEEPER, env, tmp_path / "w.log") as worker,
            Process(NOTIFIER, env, tmp_path / "n.log") as told,
            Process(SCHEDULER, env, tmp_path / "s.log"),
        ):
            worker.ready()
            eventually(lambda: len(receiver.seen) >= 2)
            paths = Counter(seen.path for seen in receiver.seen)
            assert paths == {"/hook": 1, "/s": 1}
            (hook,) = [seen for seen in receiver.seen if seen.path == "/hook"]
            assert hook.json["title"] == "agents flagged stale (no heartbeat past cutoff)"
            eventually(lambda: column(sql, STATES) == ["delivered"] * 3)
            (logged,) = [record for record in worker.records if record["msg"] == "notification"]
            assert (logged["level"], logged["event_id"]) == ("WARN", hook.headers["webhook-id"])
            assert not [record for record in told.records if record["msg"] == "notification"]
            assert worker.end() == told.end() == 0


def test_a_dead_mans_switch_hears_of_good_runs_by_the_notifier(env: dict[str, str], tmp_path: Path) -> None:
    with Receiver() as switch:
        env["SB_WORKER_HEARTBEAT_URL"] = f"{switch.url}/canary"
        with (
            Process(SWEEPER, env, tmp_path / "w.log") as worker,
            Process(NOTIFIER, env, tmp_path / "n.log") as told,
            Process(SCHEDULER, env, tmp_path / "s.log") as scheduler,
        ):
            worker.ready()
            told.ready()
            assert told.metric("worker_heartbeat_total", outcome="failure") == 0
            eventually(lambda: switch.seen)
            assert (switch.seen[0].method, switch.seen[0].path) == ("GET", "/canary")
            eventually(lambda: told.metric("worker_heartbeat_total", outcome="success"))
            assert worker.end() == told.end() == 0
            for process in (worker, told, scheduler):
                assert "canary" not in process.log.read_text(encoding="utf-8")


def test_a_notifier_has_probes_and_metrics_of_its_own(env: dict[str, str], tmp_path: Path) -> None:
    with Receiver(Reply(500)) as receiver:
        env["SB_NOTIFICATION_WEBHOOK_URL"] = receiver.url
        with Process(NOTIFIER, env, tmp_path / "n.log") as told:
            told.ready()
            assert told.get("/healthz").status_code == 200
            metrics = told.get("/metrics").text
            for outcome in ("delivered", "rejected", "unavailable"):
                assert f'worker_notification_attempts_total{{outcome="{outcome}"' in metrics
            assert told.metric("worker_notification_breaker_state", sink="webhook") == 0
            assert 'worker_notification_pending{sink="webhook"} 0.0' in metrics
            assert 'worker_notification_dead{sink="noop"} 0.0' in metrics


def test_killed_notifiers_and_a_wiped_redis_lose_nothing(
    env: dict[str, str], tmp_path: Path, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    down = True

    def answer(_seen: Seen) -> Reply:
        return Reply(503) if down else Reply(200)

    with Receiver(answer) as receiver:
        env |= {"SB_NOTIFICATION_WEBHOOK_URL": receiver.url, "SB_NOTIFICATION_TIMEOUT": "1s"}
        with Process(SWEEPER, env, tmp_path / "w.log") as worker, Process(SCHEDULER, env, tmp_path / "s.log"):
            worker.ready()
            for number in range(3):
                with Process(NOTIFIER, env, tmp_path / f"n{number}.log") as told:
                    told.ready()
                    before = len(receiver.seen)
                    insert_wrap(sql, FIXED)
                    eventually(partial(_more, receiver, before))
                    told.kill_children()
                    told.popen.wait(HUNG_PROCESS)
                redis.flushall()
            down = False
            with Process(NOTIFIER, env, tmp_path / "n.log") as told:
                told.ready()
                open_ones = "SELECT 1 FROM secrets_bridge_worker.notification_delivery WHERE finished_at IS NULL"
                eventually(lambda: not column(sql, open_ones))
    delivered = [seen for seen in receiver.seen if seen.json]
    assert delivered
    final = rows(
        sql,
        "SELECT state, count(*) AS number FROM secrets_bridge_worker.notification_delivery"
        " WHERE target = 'webhook' GROUP BY state",
    )
    assert {row["state"] for row in final} <= {"delivered", "digested"}
    told_of = (
        "SELECT sum((metadata->>'deleted')::int) FROM secrets_bridge_worker.notification_event"
        " WHERE tallies::text = '[]'"
    )
    assert column(sql, told_of) == [3]


def test_a_notifier_killed_in_a_batch_has_what_it_had_not_settled_sent_again(
    env: dict[str, str], tmp_path: Path, sql: Connection[Any]
) -> None:
    """Under the same ids, and nothing else of the batch."""
    killed = threading.Event()

    def answer(seen: Seen) -> Reply:
        if flipped(seen) == 7:  # those hang until the notifier is dead
            killed.wait(HUNG)
        return Reply(200)

    with Receiver(answer) as receiver:
        env |= {"SB_NOTIFICATION_WEBHOOK_URL": receiver.url, "SB_NOTIFICATION_NOOP_MIN_SEVERITY": "error"}
        env |= {"SB_NOTIFICATION_DIGEST_OVER": "0", "SB_NOTIFICATION_TIMEOUT": "1h"}
        with outbox(env) as box, sql.transaction():
            written = box.write(sql.cursor(row_factory=dict_row), map(event, range(20)))
        ids = "SELECT event_id::text FROM secrets_bridge_worker.notification_delivery WHERE state = "
        with Process(NOTIFIER, env, tmp_path / "n.log") as told:
            told.ready()
            with redis_py.Redis.from_url(env["REDIS_URL"]) as queue:
                send(queue, written[0].delivery)
            eventually(lambda: len(column(sql, f"{ids} 'delivered'")) == 18)
            settled, unsettled = set(column(sql, f"{ids} 'delivered'")), set(column(sql, f"{ids} 'sending'"))
            told.kill_children()
            told.popen.wait(HUNG_PROCESS)
        killed.set()
        assert len(unsettled) == 2
        ended = "UPDATE secrets_bridge_worker.notification_delivery SET lease_until = now() WHERE state = 'sending'"
        sql.execute(ended)
        with Process(NOTIFIER, env, tmp_path / "n2.log"), Process(SCHEDULER, env, tmp_path / "s.log"):
            eventually(lambda: len(column(sql, f"{ids} 'delivered'")) == 20)
    arrived = Counter(seen.headers["webhook-id"] for seen in receiver.seen)
    assert {name for name, number in arrived.items() if number == 1} == settled
    assert {name for name, number in arrived.items() if number == 2} == unsettled


@pytest.mark.parametrize("treat", [http_server.header_drip, http_server.silence])
def test_hanging_sinks_do_not_delay_sweeps(
    env: dict[str, str], tmp_path: Path, sql: Connection[Any], treat: Any
) -> None:
    """Sweeps go on while every attempt hangs, for an hour; how late they are is measured by `bench.notify hanging`."""
    with Rude(treat) as rude:
        env |= {
            "SB_NOTIFICATION_WEBHOOK_URL": rude.url,
            "SB_NOTIFICATION_DISCORD_URL": rude.url,
            "SB_NOTIFICATION_TEAMS_URL": rude.url,
            "SB_NOTIFICATION_TIMEOUT": "1h",
        }
        with (
            Process(SWEEPER, env, tmp_path / "w.log") as worker,
            Process(NOTIFIER, {**env, "SB_WORKER_SHUTDOWN_GRACE": "2s"}, tmp_path / "n.log") as told,
            Process(SCHEDULER, env, tmp_path / "s.log"),
        ):
            worker.ready()
            insert_agent(sql, "silent", last_seen_at=FIXED)
            eventually(lambda: rude.connections >= 3)
            for _ in range(8):
                insert_wrap(sql, FIXED)
                eventually(lambda: not column(sql, "SELECT 1 FROM secret_wraps"))
            assert column(sql, HUNG_ATTEMPTS)[0] >= 3
            runs = column(sql, "SELECT slot FROM secrets_bridge_worker.sweep_run WHERE name = 'wraps-expired'")
            assert len(set(runs)) == len(runs) >= 8
            assert told.end() == 0  # attempts that hang do not keep it from ending in its grace
            assert worker.end() == 0


def test_nothing_that_must_not_be_seen_is_seen_anywhere(
    env: dict[str, str], database: str, tmp_path: Path, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    """Plant canaries in every credential and in rows, deliver and fail at DEBUG, and look everywhere."""
    insert_agent(sql, "canary-agent", last_seen_at=FIXED)

    def answer(seen: Seen) -> Reply:
        return Reply(503, b"canary-reply") if "discord" in seen.path else Reply(400, b"canary-reply canary-reply")

    with Receiver() as fine, Receiver(answer) as bad:
        secret = "whsec_" + "Y2FuYXJ5" * 4
        env |= {
            "LOG_LEVEL": "debug",
            "SB_NOTIFICATION_WEBHOOK_URL": f"{fine.url}/canary-path?token=canary-query",
            "SB_NOTIFICATION_WEBHOOK_HEADERS": json.dumps({"Authorization": "Bearer canary-bearer"}),
            "SB_NOTIFICATION_WEBHOOK_SIGNING_SECRETS": secret,
            "SB_NOTIFICATION_DISCORD_URL": f"{bad.url}/discord/canary-path",
            "SB_NOTIFICATION_TEAMS_URL": f"{bad.url}/teams?sig=canary-sig",
            "SB_NOTIFICATION_SLACK_TOKEN": "xoxb-canary",
            "SB_NOTIFICATION_SLACK_CHANNEL": "C0",
            "SB_NOTIFICATION_SLACK_API_URL": f"{bad.url}/api",
            "SB_NOTIFICATION_PAGERDUTY_ROUTING_KEY": "canary00000000000000000000canary",
            "SB_NOTIFICATION_PAGERDUTY_URL": bad.url,
            "SB_NOTIFICATION_PAGERDUTY_MIN_SEVERITY": "info",
            "SB_NOTIFICATION_EMAIL_HOST": "127.0.0.1",
            "SB_NOTIFICATION_EMAIL_PORT": "1",
            "SB_NOTIFICATION_EMAIL_USERNAME": "canary-user",
            "SB_NOTIFICATION_EMAIL_PASSWORD": "canary-password",
            "SB_NOTIFICATION_EMAIL_FROM": "worker@example.org",
            "SB_NOTIFICATION_EMAIL_TO": "ops@example.org",
            "SB_NOTIFICATION_APPRISE_URLS": f"json://canary-apprise:canary@127.0.0.1:{bad.port}/canary",
        }
        with (
            Process(SWEEPER, env, tmp_path / "w.log") as worker,
            Process(NOTIFIER, env, tmp_path / "n.log") as told,
            Process(SCHEDULER, env, tmp_path / "s.log") as scheduler,
        ):
            worker.ready()
            eventually(lambda: len(fine.seen) >= 1 and len(bad.seen) >= 4)
            ended = (
                "SELECT 1 FROM secrets_bridge_worker.notification_delivery WHERE attempts = 0 AND finished_at IS NULL"
            )
            eventually(lambda: not column(sql, ended))
            seen = worker.get("/metrics").text + told.get("/metrics").text
            keys: list[bytes] = list(redis.scan_iter())
            seen += repr([redis.dump(key) for key in keys]) + repr(keys)
            for words in (["sb-worker", "config"], ["sb-worker", "notify", "log"]):
                done = finished(words, env)
                assert done.returncode == 0
                seen += done.stdout + done.stderr
        seen += worker.text + told.text + scheduler.text
    tables = column(sql, "SELECT format('secrets_bridge_worker.%I', relname) FROM pg_class WHERE relkind = 'r'"
                         " AND relnamespace = 'secrets_bridge_worker'::regnamespace")  # fmt: skip
    for table in tables:
        seen += repr(rows(sql, f"SELECT * FROM {table}"))
    assert "canary" not in seen.lower()
    assert secret not in seen
    for request in (*fine.seen, *bad.seen):
        body = request.body.replace(b"canary00000000000000000000canary", b"")  # PagerDuty wants its key in the body
        assert b"canary" not in body, request.path


@pytest.mark.parametrize("together", [False, True], ids=["each by itself", "digests"])
def test_two_notifiers_tell_every_event_once(
    env: dict[str, str], tmp_path: Path, sql: Connection[Any], together: bool
) -> None:
    with Receiver() as receiver, outbox({**env, "SB_NOTIFICATION_WEBHOOK_URL": receiver.url}) as box:
        # An attempt that a busy machine makes late must not be taken for one that failed: it would be made again.
        env |= {"SB_NOTIFICATION_WEBHOOK_URL": receiver.url, "SB_NOTIFICATION_TIMEOUT": "60s"}
        env |= {"SB_NOTIFICATION_PACE": "200ms"} if together else {"SB_NOTIFICATION_DIGEST_OVER": "0"}
        with (
            Process(NOTIFIER, env, tmp_path / "n1.log") as first,
            Process(NOTIFIER, env, tmp_path / "n2.log") as second,
            Process(SCHEDULER, env, tmp_path / "s.log"),
        ):
            first.ready()
            second.ready()
            queue = redis_py.Redis.from_url(env["REDIS_URL"])
            with queue:
                for number in range(300):
                    with sql.transaction():
                        written = box.write(sql.cursor(row_factory=dict_row), [event(number)])
                    for one in written * 2:  # every message twice, for whoever is first
                        send(queue, one.delivery)
            unfinished = "SELECT 1 FROM secrets_bridge_worker.notification_delivery WHERE finished_at IS NULL"
            eventually(lambda: not column(sql, unfinished), 5 * HUNG)
            assert first.end() == second.end() == 0
    arrived = Counter(seen.headers["webhook-id"] for seen in receiver.seen)
    assert set(arrived.values()) == {1}
    assert sum(seen.json["metadata"].get("events", 1) for seen in receiver.seen) == 300
    assert sum(flipped(seen) for seen in receiver.seen) == sum(1 + number % 7 for number in range(300))
    assert (len(receiver.seen) == 300) is not together


def send(client: redis_py.Redis, delivery: int) -> None:
    """Send a delivery's message as the worker does."""
    broker = RedisBroker(client=client, namespace="dramatiq")  # type: ignore[no-untyped-call]
    broker.declare_queue("sinks")
    broker.enqueue(Message("sinks", DELIVER, (delivery,), {}, {}))
