"""The dead man's switch outside: what it hears of, how often, and what it does not hear of."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY
from psycopg import Connection
from psycopg_pool import ConnectionPool
from structlog.testing import capture_logs

from actors import SWEEPERS
from app.core.errors import ConfigError
from app.notify.heartbeat.beat import Heartbeat
from app.notify.heartbeat.settings import HeartbeatSettings
from app.notify.settings import NotificationSettings
from app.notify.transport import ThreadLoops
from tests.support.http_server import Receiver, Reply, Rude, Seen
from tests.support.outcome import LOOPBACK
from tests.support.rows import column
from tests.support.waiting import HUNG, eventually

RUN = """
INSERT INTO secrets_bridge_worker.sweep_run (name, slot, worker, started_at, finished_at, outcome)
SELECT %(name)s, clock_timestamp(), 'test:1', now() - %(ago)s, now() - %(ago)s, %(outcome)s
"""
CANARY = "canary-token"
Open = Callable[..., Heartbeat]


@pytest.fixture
def opened(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Give a function that opens the heartbeat of one replica; its threads' loops are closed at the end."""
    pool = ConnectionPool[Connection[Any]](database, kwargs={"autocommit": True}, min_size=0, max_size=4, open=True)
    loops = []

    def replica(url: str, *, timeout: float = HUNG, **env: str) -> Heartbeat:
        for name, value in {**LOOPBACK, "SB_WORKER_HEARTBEAT_URL": f"{url}/{CANARY}", **env}.items():
            monkeypatch.setenv(name, value)
        settings = HeartbeatSettings.read()
        loops.append(ThreadLoops(NotificationSettings.read()))
        chosen = settings.chosen(sweeper.name for sweeper in SWEEPERS)
        return Heartbeat(pool, settings, chosen, timedelta(seconds=timeout), loops[-1])

    with pool:
        yield replica
        for loop in loops:
            loop.close()


def ran(sql: Connection[Any], name: str = "wraps-expired", outcome: str = "success", ago: float = 0) -> None:
    sql.execute(RUN, {"name": name, "outcome": outcome, "ago": timedelta(seconds=ago)})


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("worker_heartbeat_total", {"outcome": outcome}) or 0


def test_a_good_run_is_told_once_by_a_get(opened: Open, sql: Connection[Any]) -> None:
    with Receiver() as switch:
        here, before = opened(switch.url), counted("success")
        here.beat()
        assert switch.seen == []
        ran(sql)
        here.beat()
        here.beat()
        (seen,) = switch.seen
        assert (seen.method, seen.path, seen.body) == ("GET", f"/{CANARY}", b"")
        assert counted("success") == before + 1


def test_many_good_runs_are_one_get(opened: Open, sql: Connection[Any]) -> None:
    with Receiver() as switch:
        for name in ("wraps-expired", "agents-stale", "wraps-expired", "jobs-recovery"):
            ran(sql, name)
        opened(switch.url).beat()
        assert len(switch.seen) == 1


def test_of_two_replicas_one_tells(opened: Open, sql: Connection[Any]) -> None:
    with Receiver() as switch:
        here, other = opened(switch.url), opened(switch.url)
        ran(sql)
        here.beat()
        other.beat()
        assert len(switch.seen) == 1
        ran(sql)
        other.beat()
        here.beat()
        assert len(switch.seen) == 2


@pytest.mark.parametrize("outcome", ["failure", "interrupted", "running"])
def test_nothing_but_a_good_run_is_told(opened: Open, sql: Connection[Any], outcome: str) -> None:
    with Receiver() as switch:
        ran(sql, outcome=outcome)
        opened(switch.url).beat()
        assert switch.seen == []


def test_a_run_of_long_ago_says_nothing_about_now(opened: Open, sql: Connection[Any]) -> None:
    """As that before all notifiers were gone for a while, and sweeps with them."""
    with Receiver() as switch:
        ran(sql, ago=90)
        opened(switch.url).beat()
        assert switch.seen == []
        ran(sql, ago=-600)
        opened(switch.url).beat()
        assert switch.seen == []


def test_a_clock_that_was_ahead_silences_nothing(opened: Open, sql: Connection[Any]) -> None:
    with Receiver() as switch:
        sql.execute("INSERT INTO secrets_bridge_worker.heartbeat (run_at) VALUES (now() + interval '1 y')")
        ran(sql)
        here = opened(switch.url)
        here.beat()
        here.beat()
        assert len(switch.seen) == 1


@pytest.mark.parametrize(
    ("setting", "told"),
    [("agents-stale", False), ("wraps-expired,agents-stale", True), ("-wraps-expired", False), ("-agents-stale", True)],
)
def test_only_runs_of_the_chosen_sweepers_count(opened: Open, sql: Connection[Any], setting: str, told: bool) -> None:
    with Receiver() as switch:
        ran(sql, "wraps-expired")
        opened(switch.url, SB_WORKER_HEARTBEAT_SWEEPERS=setting).beat()
        assert bool(switch.seen) is told


@pytest.mark.parametrize("status", [302, 404, 429, 500])
def test_a_get_that_fails_is_counted_and_tried_with_the_next_look(
    opened: Open, sql: Connection[Any], status: int
) -> None:
    with Receiver(Reply(status, headers={"Location": "/elsewhere"})) as switch:
        here, before = opened(switch.url), counted("failure")
        ran(sql)
        with capture_logs() as records:
            here.beat()
            here.beat()
        assert [seen.path for seen in switch.seen] == [f"/{CANARY}"] * 2
        assert counted("failure") == before + 2
        (told,) = [record for record in records if record["event"] == "heartbeat failed"]
        assert told["code"] == str(status)
        assert CANARY not in str(records)
        assert str(switch.port) not in str(records)
        switch.answer = Reply(200)
        with capture_logs() as records:
            here.beat()
            here.beat()
        assert len(switch.seen) == 3
        assert [record["event"] for record in records] == ["heartbeat gets through again"]


def test_one_that_hangs_is_cut_and_nothing_else_is_sent_meanwhile(opened: Open, sql: Connection[Any]) -> None:
    over = threading.Event()

    def hang(_seen: Seen) -> Reply:
        over.wait(HUNG)
        return Reply()

    with Receiver(hang) as switch:
        here = opened(switch.url)
        ran(sql)

        def beat() -> None:
            here.beat()
            here._run.close()  # type: ignore[attr-defined]

        first = threading.Thread(target=beat)
        first.start()
        eventually(lambda: switch.seen)
        ran(sql)
        here.beat()
        assert len(switch.seen) == 1
        over.set()
        first.join(HUNG)
        here.beat()
        assert len(switch.seen) == 2


def test_a_deadline_bounds_the_whole_of_it(opened: Open, sql: Connection[Any]) -> None:
    def say_nothing(_connection: socket.socket, over: threading.Event) -> None:
        over.wait(HUNG)

    with Rude(say_nothing) as switch:
        ran(sql)
        with capture_logs() as records:
            opened(switch.url, timeout=0.2).beat()
        assert [record["reason"] for record in records if record["event"] == "heartbeat failed"] == ["timeout"]


def test_closed_addresses_are_not_dialled(opened: Open, sql: Connection[Any]) -> None:
    with Receiver() as switch:
        ran(sql)
        with capture_logs() as records:
            opened(switch.url, SB_NOTIFICATION_ALLOWED_NETWORKS="10.0.0.0/8").beat()
        assert switch.seen == []
        assert [record["reason"] for record in records if record["event"] == "heartbeat failed"] == ["blocked_address"]


def test_an_absent_postgres_is_a_line_and_no_get(opened: Open, sql: Connection[Any]) -> None:
    with Receiver() as switch:
        sql.execute("ALTER TABLE secrets_bridge_worker.heartbeat RENAME TO elsewhere")
        ran(sql)
        with capture_logs() as records:
            opened(switch.url).beat()
        assert [record["event"] for record in records] == ["heartbeat put off, PostgreSQL is away"]
        assert switch.seen == []


def problems(monkeypatch: pytest.MonkeyPatch, **env: str) -> list[str]:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    known = [sweeper.name for sweeper in SWEEPERS]
    try:
        on = [name for name in known if name != "gitops-poller"]
        return list(HeartbeatSettings.read().problems(NotificationSettings.read(), known, on))
    except ConfigError as error:
        return error.problems


def test_what_can_never_work_is_told_at_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    url = {"SB_WORKER_HEARTBEAT_URL": f"https://example.org/{CANARY}"}
    assert problems(monkeypatch, **url) == []
    (closed,) = problems(monkeypatch, SB_WORKER_HEARTBEAT_URL=f"http://127.0.0.1/{CANARY}")
    assert closed.startswith("SB_WORKER_HEARTBEAT_URL: plain http:// and closed addresses")
    (unknown,) = problems(monkeypatch, **url, SB_WORKER_HEARTBEAT_SWEEPERS="fax")
    assert unknown.startswith("SB_WORKER_HEARTBEAT_SWEEPERS: name 1 of the list is no sweeper's; accepted: ")
    (off,) = problems(monkeypatch, SB_WORKER_HEARTBEAT_SWEEPERS="gitops-poller")
    assert off.startswith("SB_WORKER_HEARTBEAT_SWEEPERS: none of these is on")
    (bad,) = problems(monkeypatch, SB_WORKER_HEARTBEAT_URL=CANARY)
    assert bad.startswith("SB_WORKER_HEARTBEAT_URL: not a URL")
    assert CANARY not in closed + bad


def test_a_failure_of_the_write_is_one_more_get_and_no_error(opened: Open, sql: Connection[Any]) -> None:
    with Receiver() as switch:
        ran(sql)
        sql.execute("ALTER TABLE secrets_bridge_worker.heartbeat ADD COLUMN more text NOT NULL")
        here = opened(switch.url)
        here.beat()
        sql.execute("ALTER TABLE secrets_bridge_worker.heartbeat DROP COLUMN more")
        here.beat()
        here.beat()
        assert len(switch.seen) == 2
        assert len(column(sql, "SELECT run_at FROM secrets_bridge_worker.heartbeat")) == 1
