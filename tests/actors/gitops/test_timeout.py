"""What has timed out becomes unverified."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import Connection

from actors.gitops_timeout import GIVE_UP, GitopsTimeout, gitops_timeout
from app.core.events import Severity
from tests.actors.gitops.looking import OBSERVATIONS, RUNS
from tests.support.argocd import (
    CREATED,
    again,
    insert_endpoint,
    insert_observations,
)
from tests.support.replica import Replica
from tests.support.rows import column, rows


def test_what_has_timed_out_becomes_unverified_and_the_rest_is_kept(replica: Replica, sql: Connection[Any]) -> None:
    endpoint = insert_endpoint(sql, "main", "http://127.0.0.1:1")
    second = timedelta(seconds=1)
    now = datetime.now(UTC)
    for name, state, timeout in [
        ("late queued", "queued", now - second),
        ("late active", "active", now - second),
        ("early", "active", now + 60 * second),
        ("never", "active", None),
        ("applied", "applied", now - second),
        ("failed", "failed", now - second),
    ]:
        insert_observations(sql, endpoint, name, polling_state=state, timeout_at=timeout)
    sweep = replica.run(gitops_timeout, GitopsTimeout(gitops=True))
    assert sweep.changed == 2
    assert {row["application_name"]: row["polling_state"] for row in rows(sql, OBSERVATIONS)} == {
        "late queued": "applied_unverified",
        "late active": "applied_unverified",
        "early": "active",
        "never": "active",
        "applied": "applied",
        "failed": "failed",
    }
    assert column(sql, "SELECT count(*) FROM gitops_observations WHERE terminal_at IS NOT NULL") == [2]
    (event,) = replica.events
    assert (event.severity, event.title, event.detail, dict(event.metadata)) == (
        Severity.WARN,
        "gitops observations timed out",
        "flipped 2 row(s) to applied_unverified",
        {"flipped": 2},
    )
    again(sql)
    assert replica.run(gitops_timeout, GitopsTimeout(gitops=True)).changed == 0
    assert len(replica.events) == 1


def test_an_observation_at_its_very_time_is_not_late(replica: Replica, sql: Connection[Any]) -> None:
    endpoint = insert_endpoint(sql, "main", "http://127.0.0.1:1")
    insert_observations(sql, endpoint, "app")
    with replica.runner.pool.connection() as connection, connection.transaction():
        cursor = connection.cursor()
        for cutoff, found in ((CREATED, 0), (CREATED + timedelta(microseconds=1), 1)):
            cursor.execute("UPDATE gitops_observations SET timeout_at = %s, polling_state = 'active'", [CREATED])
            given = {"after": "-infinity", "skip": 0, "cutoff": cutoff, "limit": 10, "passing": False}
            row = cursor.execute(GIVE_UP.gentle, given).fetchone()
            assert row is not None
            assert row[0] == found


def test_ten_thousand_that_have_timed_out_are_done_in_one_run(replica: Replica, sql: Connection[Any]) -> None:
    endpoint = insert_endpoint(sql, "main", "http://127.0.0.1:1")
    insert_observations(sql, endpoint, "app", timeout_at=CREATED)
    sql.execute(
        "INSERT INTO gitops_observations (request_id, argocd_endpoint_id, application_name, polling_state, timeout_at)"
        " SELECT request_id, argocd_endpoint_id, 'app-' || n, 'active', timeout_at - (n / 3) * interval '1 s'"
        " FROM gitops_observations, generate_series(1, 9999) AS n"
    )
    sweep = replica.run(gitops_timeout, GitopsTimeout(gitops=True))
    assert sweep.changed == 10_000
    assert column(sql, "SELECT DISTINCT polling_state FROM gitops_observations") == ["applied_unverified"]
    (run,) = rows(sql, RUNS)
    assert (run["outcome"], run["handed_over"], run["batches"] > 2) == ("success", False, True)
