"""reveal-sessions-expired: after the end of a session none of its wraps opens, whoever else is at them."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
import redis as redis_py
import structlog
from psycopg import Connection
from psycopg_pool import ConnectionPool

from actors.reveal_sessions_expired import RevealSessionsExpired, reveal_sessions_expired
from actors.wraps_expired import WrapsExpired, wraps_expired
from app.core.errors import SweepFailed
from app.core.events import Severity
from tests.actors.test_cutoffs import SECOND, TICK, once
from tests.support.replica import Replica
from tests.support.rights.grants import as_role
from tests.support.rows import FIXED, column, insert_reveal_session, insert_wrap, rows
from tests.support.waiting import HUNG

OPEN = "SELECT id::text FROM reveal_sessions WHERE expired_at IS NULL"
LIVE = "SELECT id::text FROM secret_wraps WHERE consumed_at IS NULL AND expires_at > now()"
FAR = datetime.fromisoformat("2099-01-01T00:00:00+00:00")
#: What the api does when a user opens a wrap, and when one hides a session.
CONSUME = """
UPDATE secret_wraps SET consumed_at = now(), consumed_by_user = 'somebody'
 WHERE id = %s AND consumed_at IS NULL AND expires_at > now()
"""
HIDE = (
    "UPDATE reveal_sessions SET expired_at = now(), expired_reason = 'user_hide' WHERE id = %s AND expired_at IS NULL"
)


def sweep(replica: Replica) -> dict[str, int]:
    counts = replica.run(reveal_sessions_expired, RevealSessionsExpired()).counts
    return {name: min(number, 1) if name == "skipped_locked" else number for name, number in counts.items() if number}


def refuse(sql: Connection[Any], table: str, id_: str, by: str = "RAISE EXCEPTION 'canary-row-content'") -> None:
    sql.execute(
        f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF OLD.id = '{id_}' THEN"
        f" {by}; END IF; RETURN NEW; END $$".encode()
    )
    sql.execute(f"CREATE TRIGGER refuse BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()".encode())


def test_sessions_end_at_their_time_and_not_before(database: str, sql: Connection[Any]) -> None:
    ended = [insert_reveal_session(sql, FIXED - ago, []) for ago in (SECOND, TICK, timedelta(0))]
    kept = [insert_reveal_session(sql, FIXED + ahead, []) for ahead in (TICK, SECOND)]
    hidden = insert_reveal_session(sql, FIXED - SECOND, [], expired_at=FIXED - SECOND)

    counts = once(database, reveal_sessions_expired, RevealSessionsExpired())

    assert (counts["sessions_swept"], counts["changed"]) == (3, 3)
    assert sorted(column(sql, OPEN)) == sorted(kept)
    assert column(sql, "SELECT id::text FROM reveal_sessions WHERE expired_reason = 'user_hide'") == [hidden]
    assert sorted(column(sql, "SELECT id::text FROM reveal_sessions WHERE expired_reason = 'ttl'")) == sorted(ended)


def test_its_unopened_wraps_end_with_it_and_no_time_moves_forward(replica: Replica, sql: Connection[Any]) -> None:
    live, opened, over, other = (
        insert_wrap(sql, FAR),
        insert_wrap(sql, FAR, consumed=True),
        insert_wrap(sql, FIXED),
        insert_wrap(sql, FAR),
    )
    gone = "00000000-0000-4000-8000-000000000000"
    insert_reveal_session(sql, FIXED, [live, opened, over, gone])

    assert sweep(replica) == {"sessions_swept": 1, "wraps_expired": 1}

    times = {row["id"]: row["expires_at"] for row in rows(sql, "SELECT id::text, expires_at FROM secret_wraps")}
    assert times[live] <= datetime.now(times[live].tzinfo)
    assert (times[opened], times[over], times[other]) == (FAR, FIXED, FAR)
    assert [(e.severity, e.title, dict(e.metadata)) for e in replica.events] == [
        (Severity.INFO, "reveal sessions expired", {"sessions_swept": 1, "wraps_expired": 1, "wrap_errors": 0})
    ]

    replica.next_slot()
    assert sweep(replica) == {}
    assert len(replica.events) == 1


def test_a_wrap_that_two_sessions_share_ends_with_the_first(replica: Replica, sql: Connection[Any]) -> None:
    wrap = insert_wrap(sql, FAR)
    insert_reveal_session(sql, FIXED, [wrap])
    later = insert_reveal_session(sql, FAR, [wrap])
    assert sweep(replica) == {"sessions_swept": 1, "wraps_expired": 1}
    assert column(sql, LIVE) == []
    assert column(sql, OPEN) == [later]


def test_many_sessions_end_in_one_run(replica: Replica, sql: Connection[Any]) -> None:
    first = insert_reveal_session(sql, FIXED, [insert_wrap(sql, FAR)])
    sql.execute(
        "INSERT INTO reveal_sessions (user_id, project_id, environment_id, ttl_seconds, expires_at, wrap_ids)"
        " SELECT user_id, project_id, environment_id, 60, expires_at, wrap_ids FROM reveal_sessions,"
        " generate_series(1, 2999) WHERE id = %s",
        [first],
    )
    assert sweep(replica) == {"sessions_swept": 3000, "wraps_expired": 1}


def test_a_wrap_that_is_being_opened_is_neither_waited_for_nor_left(
    database: str, replica: Replica, sql: Connection[Any]
) -> None:
    busy, free = insert_wrap(sql, FAR), insert_wrap(sql, FAR)
    insert_reveal_session(sql, FIXED, [busy, free])
    with psycopg.connect(database) as api:
        api.execute(CONSUME, [busy])
        assert sweep(replica) == {"wraps_expired": 1, "skipped_locked": 1}  # and the session waits for the wrap
        api.rollback()
    replica.next_slot()
    assert sweep(replica) == {"sessions_swept": 1, "wraps_expired": 1}
    assert (column(sql, LIVE), column(sql, OPEN)) == ([], [])
    assert sql.execute(CONSUME, [busy]).rowcount == 0


def test_an_opened_wrap_is_left_to_who_opened_it(database: str, replica: Replica, sql: Connection[Any]) -> None:
    wrap = insert_wrap(sql, FAR)
    insert_reveal_session(sql, FIXED, [wrap])
    with psycopg.connect(database) as api:
        api.execute(CONSUME, [wrap])
        assert sweep(replica) == {"skipped_locked": 1}
        api.commit()
    replica.next_slot()
    assert sweep(replica) == {"sessions_swept": 1}
    assert column(sql, "SELECT expires_at FROM secret_wraps") == [FAR]


def test_a_session_that_its_user_hides_stays_hidden(database: str, replica: Replica, sql: Connection[Any]) -> None:
    session = insert_reveal_session(sql, FIXED, [insert_wrap(sql, FAR)])
    with psycopg.connect(database) as api:
        api.execute(HIDE, [session])
        assert sweep(replica) == {"skipped_locked": 1}
        api.commit()
    replica.next_slot()
    assert sweep(replica) == {}
    assert column(sql, "SELECT expired_reason FROM reveal_sessions") == ["user_hide"]
    assert sql.execute(HIDE, [session]).rowcount == 0


def test_a_wrap_that_cannot_be_written_keeps_its_session_due_and_nobody_else(
    replica: Replica, sql: Connection[Any]
) -> None:
    bad, beside = insert_wrap(sql, FAR), insert_wrap(sql, FAR)
    insert_reveal_session(sql, FIXED - SECOND, [insert_wrap(sql, FAR)])
    session = insert_reveal_session(sql, FIXED, [bad, beside])
    insert_reveal_session(sql, FIXED + SECOND, [insert_wrap(sql, FAR)])
    refuse(sql, "secret_wraps", bad)

    assert str(replica.fails(reveal_sessions_expired, RevealSessionsExpired())) == "PartlyFailed"

    assert (column(sql, LIVE), column(sql, OPEN)) == ([bad], [session])
    done, failed = replica.events
    assert (done.severity, done.title) == (Severity.WARN, "reveal sessions expired with wrap-expiry errors")
    assert {"sessions_swept": 2, "wraps_expired": 3, "wrap_errors": 1}.items() <= dict(done.metadata).items()
    assert (failed.severity, failed.title) == (Severity.ERROR, "sweep expired reveal sessions failed")
    assert "canary" not in repr(replica.events)

    # The retry finds it, as long as there is something to do.
    assert str(replica.fails(reveal_sessions_expired, RevealSessionsExpired())) == "PartlyFailed"
    sql.execute("DROP TRIGGER refuse ON secret_wraps")
    assert sweep(replica) == {"sessions_swept": 1, "wraps_expired": 1}
    assert (column(sql, LIVE), column(sql, OPEN)) == ([], [])


def test_a_session_that_cannot_be_written_still_has_its_wraps_ended(replica: Replica, sql: Connection[Any]) -> None:
    bad = insert_reveal_session(sql, FIXED, [insert_wrap(sql, FAR)])
    worse = insert_reveal_session(sql, FIXED, [insert_wrap(sql, FAR)])
    insert_reveal_session(sql, FIXED + SECOND, [insert_wrap(sql, FAR)])
    refuse(sql, "reveal_sessions", bad)
    sql.execute(f"ALTER TABLE reveal_sessions ADD CHECK (id <> '{worse}' OR expired_at IS NULL)".encode())

    assert sweep(replica) == {"sessions_swept": 1, "wraps_expired": 3, "rows_failed": 2}

    assert (column(sql, LIVE), sorted(column(sql, OPEN))) == ([], sorted([bad, worse]))


def test_a_wrap_that_is_too_slow_to_write_keeps_nobody_else(replica: Replica, sql: Connection[Any]) -> None:
    """At this cadence a run has less time than PostgreSQL gives to a statement."""
    slow, beside, last = insert_wrap(sql, FAR), insert_wrap(sql, FAR), insert_wrap(sql, FAR)
    session = insert_reveal_session(sql, FIXED, [slow])
    insert_reveal_session(sql, FIXED + SECOND, [beside])
    refuse(sql, "secret_wraps", slow, by="PERFORM pg_sleep(60)")
    replica.runner.lease = timedelta(seconds=3)
    replica.runner.budget = timedelta(seconds=0.5)

    def runs_until_ended(wrap: str) -> None:
        for _ in range(8):
            with suppress(SweepFailed):
                sweep(replica)
            replica.next_slot()
            if wrap not in column(sql, LIVE):
                return
        raise AssertionError("it never ended")

    runs_until_ended(beside)
    insert_reveal_session(sql, FIXED - SECOND, [last])  # before the place where the next run goes on
    runs_until_ended(last)
    assert (column(sql, LIVE), column(sql, OPEN)) == ([slow], [session])


def test_more_sessions_of_a_bad_wrap_than_a_run_steps_around_keep_nobody_else(
    replica: Replica, sql: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens a session of such a wrap again and again makes more and more of them, and none ever ends."""
    monkeypatch.setattr("app.sweeping.runner.MOST_ROWS_FAILED", 10)
    bad, good = insert_wrap(sql, FAR), insert_wrap(sql, FAR)
    for number in range(25):
        insert_reveal_session(sql, FIXED + number * TICK, [bad])
    insert_reveal_session(sql, FIXED + SECOND, [good])
    refuse(sql, "secret_wraps", bad)

    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            assert str(replica.fails(reveal_sessions_expired, RevealSessionsExpired())) == "PartlyFailed"

    assert column(sql, LIVE) == [bad]
    assert [line["event"] for line in logs].count("a wrap could not be expired") == 3


def test_without_its_table_the_sweep_rests_and_wakes_up_when_it_appears(replica: Replica, sql: Connection[Any]) -> None:
    insert_reveal_session(sql, FIXED, [])
    sql.execute("ALTER TABLE reveal_sessions RENAME TO elsewhere")
    with pytest.raises(Exception, match="table_missing"):
        sweep(replica)
    assert rows(sql, "SELECT * FROM secrets_bridge_worker.sweep_run") == []
    sql.execute("ALTER TABLE elsewhere RENAME TO reveal_sessions")
    assert sweep(replica) == {"sessions_swept": 1}


def test_wraps_expired_and_this_sweep_go_through_the_same_wraps(replica: Replica, sql: Connection[Any]) -> None:
    insert_reveal_session(sql, FIXED, [insert_wrap(sql, FAR), insert_wrap(sql, FIXED)])
    assert replica.run(wraps_expired, WrapsExpired()).changed == 1
    assert sweep(replica) == {"sessions_swept": 1, "wraps_expired": 1}
    replica.next_slot()
    assert replica.run(wraps_expired, WrapsExpired()).changed == 1


# ----------------------------------------------------------------------------------- 410 for who asks afterwards


HOUR = WrapsExpired(session_retention=timedelta(hours=1))


def left(database: str, sql: Connection[Any], settings: WrapsExpired) -> set[str]:
    once(database, wraps_expired, settings)
    return set(column(sql, "SELECT id::text FROM secret_wraps"))


def test_expired_wraps_of_a_session_are_kept_for_so_long_after_its_end(database: str, sql: Connection[Any]) -> None:
    def wrap_of(expires_at: datetime, *, expired_at: datetime | None = None) -> str:
        wrap = insert_wrap(sql, FIXED - SECOND)
        insert_reveal_session(sql, expires_at, [wrap], expired_at=expired_at)
        return wrap

    day = timedelta(days=1)
    kept = {
        wrap_of(FIXED, expired_at=FIXED - timedelta(hours=1) + TICK),
        wrap_of(FIXED - timedelta(hours=1) + TICK),  # that is over, and not yet marked
        wrap_of(FIXED + SECOND),  # that is open
        wrap_of(FIXED - day, expired_at=FIXED),
        insert_wrap(sql, FIXED + SECOND),
    }
    wrap_of(FIXED, expired_at=FIXED - timedelta(hours=1))
    wrap_of(FIXED - timedelta(hours=1))
    insert_wrap(sql, FIXED - SECOND)
    insert_reveal_session(sql, FIXED, ["00000000-0000-4000-8000-000000000000"])
    sql.execute("UPDATE reveal_sessions SET wrap_ids = wrap_ids || NULL::uuid")

    assert left(database, sql, HOUR) == kept
    assert len(left(database, sql, WrapsExpired())) == 1


@pytest.mark.parametrize("without", ["DROP TABLE reveal_sessions", "DELETE FROM reveal_sessions"])
def test_without_sessions_wraps_are_deleted_as_ever(database: str, sql: Connection[Any], without: str) -> None:
    insert_reveal_session(sql, FIXED, [insert_wrap(sql, FIXED - SECOND)])
    sql.execute(without.encode())
    assert left(database, sql, HOUR) == set()


def test_the_retention_of_sessions_is_beside_that_of_all_wraps(database: str, sql: Connection[Any]) -> None:
    own = WrapsExpired(retention=timedelta(minutes=10), session_retention=timedelta(minutes=30))
    young, named = insert_wrap(sql, FIXED - timedelta(minutes=9)), insert_wrap(sql, FIXED - timedelta(minutes=20))
    insert_wrap(sql, FIXED - timedelta(minutes=20))
    insert_reveal_session(sql, FIXED, [named], expired_at=FIXED - timedelta(minutes=20))
    assert left(database, sql, own) == {young, named}


def test_a_role_that_may_not_read_sessions_deletes_wraps_all_the_same(
    database: str, role: str, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    insert_reveal_session(sql, FIXED, [insert_wrap(sql, FIXED - SECOND)])
    sql.execute(f"GRANT USAGE ON SCHEMA secrets_bridge_worker TO {role}".encode())
    sql.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA secrets_bridge_worker TO {role}".encode())
    sql.execute(f"GRANT ALL ON secret_wraps TO {role}".encode())
    url, options = as_role(database, role), {"autocommit": True}
    with (
        ConnectionPool[Connection[Any]](url, kwargs=options, min_size=0, max_size=2, timeout=HUNG) as pool,
        Replica(pool, redis, lease=timedelta(minutes=1)) as replica,
    ):
        assert replica.run(wraps_expired, HOUR).changed == 1
