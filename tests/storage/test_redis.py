"""Clients of Redis: what they do about a server that is not the one to talk to any more, and how long they wait."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from app.core.errors import BootError
from app.demo.binaries import redis_programs
from app.demo.ports import reserved_port
from app.demo.servers import Redis
from app.storage.redis import Client, check_shards, connect, queue_prefix
from app.storage.redis_connection import time_limit
from app.storage.redis_dsn import parse_redis_url
from app.storage.redis_reasons import reason
from app.storage.settings import DatabaseSettings, RedisSettings
from tests.support.proxy import Proxy
from tests.support.rights.acl import GrantedRedis
from tests.support.waiting import HUNG, eventually

SET = "return redis.call('SET', KEYS[1], ARGV[1])"


def client(url: str, **settings: Any) -> Client:
    return connect(RedisSettings(url=parse_redis_url(url), **settings), answer_within=timedelta(seconds=HUNG))


@contextmanager
def server(directory: Path, *options: str, program: str = "redis", kind: type[Redis] = Redis) -> Iterator[Redis]:
    """Run a Redis of one's own; the port of a cluster's bus, 10,000 above its own, is held as well."""
    with reserved_port(10_000) as port:
        directory.mkdir(exist_ok=True)
        with kind(directory, port=port, program=redis_programs().get(program), options=options) as running:
            yield running


@pytest.mark.parametrize("program", sorted(redis_programs()))
@pytest.mark.parametrize("how", ["command", "script"])
def test_a_demoted_master_is_left_for_the_new_one(program: str, how: str, tmp_path: Path) -> None:
    with (
        server(tmp_path / "old", program=program) as old,
        server(tmp_path / "new", program=program) as new,
        Proxy(old.port) as proxy,
        client(f"redis://127.0.0.1:{proxy.port}") as through,
    ):
        script = through.register_script(SET)
        calls = {"command": lambda: through.set("key", "x"), "script": lambda: script(keys=["key"], args=["x"])}
        calls[how]()
        with redis_py.Redis(port=old.port) as direct:
            direct.replicaof("127.0.0.1", str(new.port))
            proxy.lead_to(new.port)
            assert calls[how]()
            assert direct.info("replication")["role"] == "slave"
        with redis_py.Redis(port=new.port) as direct:
            assert direct.get("key") == b"x"


def test_the_connections_that_nobody_used_meanwhile_are_left_too(tmp_path: Path) -> None:
    with (
        server(tmp_path / "old") as old,
        server(tmp_path / "new") as new,
        Proxy(old.port) as proxy,
        client(f"redis://127.0.0.1:{proxy.port}?client_name=ours") as through,
        redis_py.Redis(port=old.port) as direct,
    ):
        pool: Any = through.connection_pool
        for connection in [pool.get_connection() for _ in range(3)]:
            pool.release(connection)
        direct.replicaof("127.0.0.1", str(new.port))
        proxy.lead_to(new.port)
        through.set("key", "x")
        eventually(lambda: not [other for other in direct.client_list() if other["name"] == "ours"])


def test_where_dialling_does_not_help_the_connection_is_kept(tmp_path: Path) -> None:
    with server(tmp_path / "r") as running, client(running.url()) as ours:
        number = ours.client_id()
        ours.config_set("maxmemory", "1")
        script: Any = ours.register_script(SET)
        calls: list[Any] = [lambda: ours.set("key", "x"), lambda: script(keys=["key"], args=["x"])]
        for call in calls:
            with pytest.raises(redis_py.ResponseError) as refused:
                call()
            assert reason(refused.value) == "OOM"
        assert ours.client_id() == number


def test_a_dead_connection_is_replaced_and_the_call_made_again(tmp_path: Path) -> None:
    with server(tmp_path / "r") as running, client(running.url()) as ours, redis_py.Redis(port=running.port) as other:
        number = ours.client_id()
        other.client_kill_filter(_id=str(number))
        assert ours.client_id() != number


def test_a_login_that_was_replaced_is_read_anew_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(tmp_path / "r") as running, redis_py.Redis(port=running.port) as admin:
        admin.config_set("requirepass", "one")
        file = tmp_path / "url"
        file.write_text(f"redis://:one@127.0.0.1:{running.port}/0\n")
        monkeypatch.setenv("REDIS_URL_FILE", str(file))
        with connect(RedisSettings.read(), answer_within=timedelta(seconds=HUNG)) as ours:
            assert ours.ping()
            admin.config_set("requirepass", "two")
            admin.client_kill_filter(_id=str(ours.client_id()))
            with pytest.raises(redis_py.AuthenticationError):
                ours.ping()
            file.write_text(f"redis://:two@127.0.0.1:{running.port}/0\n")
            assert ours.ping()


def test_a_url_that_is_replaced_may_lead_to_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(tmp_path / "old") as old, server(tmp_path / "new") as new:
        file = tmp_path / "url"
        file.write_text(old.url())
        monkeypatch.setenv("REDIS_URL_FILE", str(file))
        with connect(RedisSettings.read(), answer_within=timedelta(seconds=HUNG)) as ours:
            ours.set("key", "old")
            file.write_text(new.url())
            old.kill()
            assert ours.get("key") is None


def test_who_finds_no_free_connection_waits_for_one(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                ours.eval("for i = 1, 1000 do redis.call('TIME') end", 0)
        except redis_py.RedisError as error:
            failed.append(error)

    with server(tmp_path / "r") as running, client(running.url(), pool_size=1) as ours:
        threads = [threading.Thread(target=work) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HUNG)
        assert not failed
        assert len(ours.client_list()) == 2


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (lambda text: RedisSettings(url=parse_redis_url(text)), "pool_size=1"),
        (lambda text: RedisSettings(url=parse_redis_url(text), pool_size=1), ""),
    ],
)
def test_too_few_connections_are_raised_with_a_warning(settings: Any, name: str) -> None:
    read = settings(f"redis://h?{name}")
    assert read.connections == 2
    (warning,) = read.warnings
    assert warning.startswith("REDIS_POOL_SIZE: ")


def test_enough_connections_are_taken_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://h/d?pool_max_conns=3")
    settings = DatabaseSettings.read()
    assert (settings.connections, settings.warnings) == (3, ())
    monkeypatch.setenv("DATABASE_MAX_CONNS", "1")
    settings = DatabaseSettings.read()
    assert settings.connections == 2
    assert settings.warnings[0].startswith("DATABASE_MAX_CONNS: ")


def test_a_silent_server_ends_a_call_and_what_waits_behind_it(tmp_path: Path) -> None:
    with server(tmp_path / "r") as running:
        settings = RedisSettings(url=parse_redis_url(running.url()), pool_size=2)
        with connect(settings, answer_within=timedelta(milliseconds=200)) as ours:
            eventually(lambda: _answers(ours))
            assert running.process is not None
            os.kill(running.process.pid, signal.SIGSTOP)
            try:
                ended: list[str] = []
                threads = [threading.Thread(target=lambda: ended.append(_error(ours))) for _ in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(HUNG)
                assert set(ended) == {"ConnectionError"}
            finally:
                os.kill(running.process.pid, signal.SIGCONT)
            eventually(lambda: _answers(ours))


def _answers(ours: Client) -> bool:
    try:
        return bool(ours.ping())
    except redis_py.ConnectionError:
        return False


def _error(ours: Client) -> str:
    try:
        ours.ping()
    except redis_py.RedisError as error:
        return type(error).__name__
    return ""


def test_no_wait_begins_after_the_deadline_and_no_late_answer_is_taken_for_another(redis_server: GrantedRedis) -> None:
    pool: Any = parse_redis_url(redis_server.owner_url()).pool()
    connection = pool.get_connection()
    connection.send_command("ECHO", "late")
    with time_limit(0), pytest.raises(redis_py.TimeoutError):
        connection.read_response()
    connection.send_command("ECHO", "next")
    assert connection.read_response() == b"next"
    pool.disconnect()


@pytest.mark.parametrize("program", sorted(redis_programs()))
def test_in_a_cluster_the_queues_keys_are_in_one_slot(program: str, tmp_path: Path) -> None:
    with server(tmp_path / "r", "--cluster-enabled", "yes", program=program) as running:
        with redis_py.Redis(port=running.port) as admin:
            admin.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            eventually(lambda: admin.cluster("INFO")["cluster_state"] == "ok")
        with client(running.url()) as ours:
            assert check_shards(ours) == 1
            assert queue_prefix(ours, "dramatiq") == "{dramatiq}"


def test_elsewhere_they_keep_their_names(any_redis_server: Redis) -> None:
    with client(any_redis_server.url()) as ours:
        assert check_shards(ours) == 0
        assert queue_prefix(ours, "dramatiq") == "dramatiq"


def test_a_cluster_of_several_shards_is_refused(tmp_path: Path) -> None:
    cluster = ("--cluster-enabled", "yes")
    with server(tmp_path / "a", *cluster) as first, server(tmp_path / "b", *cluster) as second:
        with redis_py.Redis(port=first.port) as one, redis_py.Redis(port=second.port) as two:
            one.execute_command("CLUSTER", "ADDSLOTS", *range(8192))
            two.execute_command("CLUSTER", "ADDSLOTS", *range(8192, 16384))
            two.execute_command("CLUSTER", "SET-CONFIG-EPOCH", 2)
            one.execute_command("CLUSTER", "MEET", "127.0.0.1", second.port)
            eventually(lambda: int(one.cluster("INFO")["cluster_size"]) == 2)
        with client(first.url()) as ours, pytest.raises(BootError, match="a Redis Cluster of 2 shards; accepted: "):
            check_shards(ours)
