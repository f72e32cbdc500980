"""Each observation has one result a slot, whoever else is at its row."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
import redis as redis_py
from prometheus_client import REGISTRY
from psycopg import Connection
from psycopg_pool import ConnectionPool

from actors.gitops_poller import gitops_poller
from app.core.errors import LeaseLost
from tests.actors.gitops.looking import OBSERVATIONS, RUNS, one
from tests.support.argocd import (
    AFTER,
    CREATED,
    Argo,
    document,
    insert_endpoint,
    insert_observations,
    settings,
)
from tests.support.http_server import Receiver
from tests.support.replica import Replica
from tests.support.rows import column, rows
from tests.support.slots import steady
from tests.support.waiting import HUNG, eventually


def test_each_observation_is_polled_once_a_slot(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    stand_in, server = argo
    names = [f"app-{number:02}" for number in range(45)]
    stand_in.applications |= {name: document(name, "Progressing") for name in names}
    insert_observations(sql, insert_endpoint(sql, "main", server.url), *names)
    own = settings(interval=steady())
    replica.run(gitops_poller, own)
    assert len(server.seen) == 90
    # A second run of the same slot, as after a failure, finds nothing to claim.
    sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = 'epoch'")
    sql.execute("DELETE FROM secrets_bridge_worker.sweep_run")
    replica.run(gitops_poller, own)
    assert len(server.seen) == 90
    assert set(column(sql, "SELECT polls_count FROM gitops_observations")) == {1}


@pytest.mark.parametrize(
    "meanwhile",
    [
        "UPDATE gitops_observations SET polling_state = 'applied_unverified', terminal_at = now()",
        "UPDATE gitops_observations SET polls_count = polls_count + 1, last_error = 'newer'",
        "UPDATE gitops_observations SET last_polled_at = now() + interval '1 s'",
    ],
    ids=["timed out", "polled by another", "claimed by another"],
)
def test_a_result_is_not_written_over_a_row_that_has_moved(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any], meanwhile: str
) -> None:
    stand_in, server = argo

    def move(_name: str) -> float:
        stand_in.pause = lambda _name: 0.0
        sql.execute(meanwhile.encode())
        return 0.0

    stand_in.applications["app"] = document("app", reconciledAt=AFTER)
    stand_in.pause = move
    insert_observations(sql, insert_endpoint(sql, "main", server.url), "app")
    sweep = replica.run(gitops_poller, settings())
    row = one(sql)
    assert dict(sweep.counts)["overtaken"] == 1
    assert row["observed_state"] == {}
    assert row["polling_state"] in ("applied_unverified", "active")
    assert row["last_error"] in (None, "newer")


def test_terminal_rows_are_never_claimed(argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]) -> None:
    _, server = argo
    endpoint = insert_endpoint(sql, "main", server.url)
    for state in ("applied", "failed", "applied_unverified"):
        insert_observations(sql, endpoint, f"app-{state}", polling_state=state, terminal_at=CREATED)
    before = rows(sql, OBSERVATIONS)
    replica.run(gitops_poller, settings())
    assert rows(sql, OBSERVATIONS) == before
    assert server.seen == []


def test_a_lock_lost_in_the_middle_of_a_request_ends_the_run_unwritten(
    argo: tuple[Argo, Receiver], database: str, redis: redis_py.Redis, sql: Connection[Any]
) -> None:
    stand_in, server = argo
    stand_in.applications |= {"app": document("app", reconciledAt=AFTER), "bpp": document("bpp", "Progressing")}
    started = threading.Event()

    def slow(name: str) -> float:
        started.set()
        return HUNG if name == "app" else 0.0

    stand_in.pause = slow
    insert_observations(sql, insert_endpoint(sql, "main", server.url), "app", "bpp")
    with (
        ConnectionPool[Connection[Any]](database, kwargs={"autocommit": True}, min_size=0, max_size=2) as pool,
        Replica(pool, redis, lease=timedelta(seconds=6)) as replica,
    ):

        def forget() -> None:
            assert started.wait(HUNG)
            redis.flushall()

        threading.Thread(target=forget, daemon=True).start()
        with pytest.raises(LeaseLost):
            replica.run(gitops_poller, settings(timeout=timedelta(seconds=2 * HUNG)))
        eventually(lambda: stand_in.under_way == 1)  # it has not waited for the answer
        stand_in._over.set()
        first = next(row for row in rows(sql, OBSERVATIONS) if row["application_name"] == "app")
        assert (first["polling_state"], first["polls_count"]) == ("active", 0)

        # Its successor closes the run, in a slot of its own, and polls what is due again.
        stand_in.pause = lambda _name: 0.0
        sql.execute("UPDATE gitops_observations SET last_polled_at = last_polled_at - interval '1 hour'")
        replica.run(gitops_poller, settings(interval=timedelta(seconds=1)))
    assert [run["outcome"] for run in rows(sql, RUNS)] == ["interrupted", "success"]
    assert {row["polls_count"] >= 1 for row in rows(sql, OBSERVATIONS)} == {True}


def test_a_process_that_ends_lets_go_of_what_hangs(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any]
) -> None:
    stand_in, server = argo
    stand_in.applications |= {"app": document("app"), "bpp": document("bpp", "Progressing")}

    def polled() -> float:
        return REGISTRY.get_sample_value("worker_gitops_polls_total", {"outcome": "ok"}) or 0.0

    before = polled()
    stand_in.pause = lambda name: HUNG if name == "app" else 0.0
    replica.runner.stopping = lambda: polled() > before and stand_in.under_way == 1
    insert_observations(sql, insert_endpoint(sql, "main", server.url), "app", "bpp")
    replica.run(gitops_poller, settings(timeout=timedelta(seconds=2 * HUNG)))
    assert stand_in.under_way == 1  # it has not waited for the answer
    stand_in._over.set()
    first, second = rows(sql, OBSERVATIONS)
    assert (first["polls_count"], second["polls_count"]) == (0, 1)
    assert rows(sql, RUNS)[0]["handed_over"]


def test_an_idle_run_asks_for_no_token(replica: Replica, sql: Connection[Any]) -> None:
    insert_endpoint(sql, "main", "http://127.0.0.1:1")
    sweep = replica.run(gitops_poller, settings())
    assert sweep.changed == 0
    assert rows(sql, RUNS)[0]["batches"] == 1
    assert replica.events == []
