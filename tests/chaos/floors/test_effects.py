"""What counts as an effect is what the world has seen: a fault that nobody met counts nothing."""

from __future__ import annotations

import random
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psycopg
import pytest

from tests.chaos.deployment import Deployment, Plan
from tests.chaos.faults import points
from tests.chaos.faults.argocd import fail_argocd
from tests.chaos.faults.damage import STRANGE_CERTIFICATE, fail_with
from tests.chaos.faults.fault import Counted
from tests.chaos.faults.network import DAMAGES, hurting
from tests.chaos.faults.operator import mute, pause
from tests.chaos.faults.postgres_server import checkpointer_stopped, crashed, table_locked, thrown_out
from tests.chaos.faults.postgres_server import paused as postgres_paused
from tests.chaos.faults.redis_server import flushed, full, killed, replica
from tests.chaos.faults.telling import attempts_that_failed, polls_that_failed
from tests.support.http_server import Receiver, Seen
from tests.support.proxy import Proxy
from tests.support.waiting import HUNG, eventually

SEED = 7
_REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
_FORGET = """
TRUNCATE secrets_bridge_worker.notification_event, secrets_bridge_worker.notification_delivery,
         secrets_bridge_worker.notification_target
"""
_DELIVERY = """
WITH event AS (
    INSERT INTO secrets_bridge_worker.notification_event (kind, component, severity, title, detail, metadata)
    VALUES ('swept', 'wraps-expired', 'info', 'title', 'detail', '{}') RETURNING id
) INSERT INTO secrets_bridge_worker.notification_delivery (event_id, target, state)
  SELECT id, %s, 'pending' FROM event RETURNING id
"""
_CLAIMED = """
UPDATE secrets_bridge_worker.notification_delivery SET state = 'sending', lease_until = now(), attempts = attempts + 1
"""
_SETTLED = """
UPDATE secrets_bridge_worker.notification_delivery SET state = 'pending', lease_until = NULL, reason = 'tls'
"""
_GIVEN_BACK = """
UPDATE secrets_bridge_worker.notification_delivery SET state = 'pending', lease_until = NULL, attempts = attempts - 1
"""
_WAITS = "SELECT 1 FROM pg_locks WHERE locktype = 'relation' AND NOT granted"


@pytest.fixture(scope="module")
def servers() -> Iterator[Deployment]:
    """Servers without a process of ours."""
    with tempfile.TemporaryDirectory(prefix="sb-effects-") as name:
        Path(name).chmod(0o755)  # PostgreSQL's user goes through it
        with Deployment(Path(name), Plan(numbers={})) as made:
            yield made


@pytest.fixture
def deployment(servers: Deployment) -> Deployment:
    servers.log.effects.clear()
    servers.log.faults.clear()
    with servers.client() as client, servers.sql() as sql:
        client.flushall()
        sql.execute(_FORGET)
    return servers


def _strike(deployment: Deployment, fault: Counted, over: threading.Event | None = None) -> dict[str, int]:
    """Strike once, without a wait unless that is ended by somebody, and return what has counted."""
    if over is None:
        over = threading.Event()
        over.set()
    fault(deployment, random.Random(SEED), over)
    return {kind: times for kind, times in deployment.log.effects.items() if times}


@pytest.mark.parametrize("wipe", [killed, flushed], ids=["killed", "flushed"])
def test_a_wipe_counts_when_there_was_something_to_wipe(deployment: Deployment, wipe: Counted) -> None:
    assert "redis wiped" not in _strike(deployment, wipe)

    with deployment.client() as client:
        client.set("a", 1)

    assert _strike(deployment, wipe)["redis wiped"] == 1


@pytest.mark.parametrize("refusal", [full, replica], ids=["full", "replica"])
def test_a_refusal_counts_when_somebody_was_refused(deployment: Deployment, refusal: Counted) -> None:
    assert _strike(deployment, refusal) == {}


def test_a_lock_of_a_table_counts_when_somebody_waits_for_it(deployment: Deployment) -> None:
    assert _strike(deployment, table_locked) == {}

    table = random.Random(SEED).choice(points.BATCH)
    over, asked = threading.Event(), threading.Event()

    def ask() -> None:
        with closing(psycopg.connect(deployment.ordinary_url, autocommit=True)) as connection:
            while not over.wait(0.01):
                connection.execute(f"SELECT count(*) FROM {table}".encode())
                asked.set()

    def look() -> None:
        with deployment.sql() as sql:
            eventually(lambda: sql.execute(_WAITS).fetchone())
        over.set()

    threads = [threading.Thread(target=work) for work in (ask, look)]
    threads[0].start()
    assert asked.wait(HUNG)
    threads[1].start()
    counted = _strike(deployment, table_locked, over)
    over.set()
    for thread in threads:
        thread.join(HUNG)
    assert counted == {"postgres table locked": 1}


@pytest.mark.parametrize("fault", [crashed, thrown_out], ids=["crashed", "thrown out"])
def test_the_end_of_sessions_counts_when_there_were_some(deployment: Deployment, fault: Counted) -> None:
    assert _strike(deployment, fault) == {}

    with closing(psycopg.connect(deployment.ordinary_url)):
        assert list(_strike(deployment, fault).values()) == [1]


def test_a_server_that_stands_still_counts_when_it_leaves_somebody_without_an_answer(deployment: Deployment) -> None:
    assert _strike(deployment, postgres_paused) == {"postgres paused": 1}
    assert _strike(deployment, checkpointer_stopped)["postgres checkpointer stopped"] == 1


def test_a_mute_counts_when_nothing_was_accepted_although_something_waits(deployment: Deployment) -> None:
    name = random.Random(SEED).choice(("webhook", "slack"))
    with deployment.sql() as sql:
        sql.execute("INSERT INTO secrets_bridge_worker.notification_target (name) VALUES ('webhook'), ('slack')")
        assert _strike(deployment, mute) == {}, "nothing is held back"
        sql.execute(_DELIVERY, [name])
        heard = Seen("POST", f"/{name}", {}, b"", at=time.monotonic() + 3600)
        deployment.outside.servers[name].accepted.append(heard)
        assert _strike(deployment, mute) == {}, "it was accepted all the same"
        deployment.outside.servers[name].accepted.remove(heard)

    assert _strike(deployment, mute) == {"mute": 1}


def test_a_pause_counts_when_others_begin_runs(deployment: Deployment) -> None:
    assert _strike(deployment, pause) == {}


def test_connections_that_do_not_come_about_count_when_somebody_tells_of_them(deployment: Deployment) -> None:
    with deployment.sql() as sql:
        sql.execute(_DELIVERY, ["slack"])
        told = attempts_that_failed(deployment, "slack", "tls")
        fail_with(deployment, "sink", "slack", STRANGE_CERTIFICATE, told=told, wait=lambda: None)
        assert not deployment.log.effects

        for statement in (_CLAIMED, _SETTLED):
            sql.execute(statement.encode())
        fail_with(deployment, "sink", "slack", STRANGE_CERTIFICATE, told=told, wait=lambda: None)
        assert deployment.log.effects == {"sink": 1, "sink: slack": 1, "slack: a strange certificate": 1}

        later = attempts_that_failed(deployment, "slack", "tls")
        for statement in (_CLAIMED, _GIVEN_BACK):
            sql.execute(statement.encode())
        assert not later(), "what is given back unsent keeps the reason of the last attempt"


def test_a_poll_counts_when_it_could_not_reach_argocd(deployment: Deployment) -> None:
    with deployment.sql() as sql:
        sql.execute(
            "UPDATE gitops_observations SET last_error = 'argocd fetch: argocd: /a: cannot be reached (connect)'"
        )
        told = polls_that_failed(deployment)
        fail_with(deployment, "argocd", "argocd", STRANGE_CERTIFICATE, told=told, wait=lambda: None)
        assert not deployment.log.effects
        sql.execute("UPDATE gitops_observations SET polls_count = polls_count + 1")
        fail_with(deployment, "argocd", "argocd", STRANGE_CERTIFICATE, told=told, wait=lambda: None)
    assert deployment.log.effects == {"argocd": 1, "argocd: a strange certificate": 1}


def test_argocd_that_nobody_asks_counts_nothing(deployment: Deployment) -> None:
    assert _strike(deployment, fail_argocd) == {}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_network_counts_when_connections_met_it(name: str) -> None:
    with Receiver() as server, Proxy(server.port) as proxy:
        assert not hurting(name, [proxy], random.Random(SEED), lambda _seconds: None)


@pytest.mark.parametrize("name", [name for name in DAMAGES if name != "reset"])
def test_a_connection_on_which_nothing_is_said_notices_nothing(name: str) -> None:
    with Receiver() as server, Proxy(server.port) as proxy, closing(_connected(proxy)):
        assert not hurting(name, [proxy], random.Random(SEED), lambda _seconds: None)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_connection_on_which_something_is_said_notices(name: str) -> None:
    with Receiver() as server, Proxy(server.port) as proxy, closing(_connected(proxy)) as client:

        def ask() -> int:
            with suppress(OSError):  # it was cut
                client.sendall(_REQUEST)
            return proxy.hurt

        assert hurting(name, [proxy], random.Random(SEED), lambda _seconds: eventually(ask))


def _connected(proxy: Proxy) -> socket.socket:
    """Return a connection on which something has been said, so that it is known to be passed on."""
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=HUNG)
    client.sendall(_REQUEST)
    answer = b""
    while not answer.endswith(b"ok"):
        answer += client.recv(4096)
    return client
