"""However many wait or are dead: nothing times out, nothing fills the memory, nothing falls silent."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client.core import GaugeMetricFamily
from psycopg import Connection
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from app.core.events import Severity
from app.notify import collector, relay
from app.notify.collector import NotificationCollector
from app.notify.relay import Pruner
from tests.notify.test_deliveries import HOUR, OPEN_GATES, SECOND, event, hook
from tests.sinks.test_answers import KEY
from tests.support.http_server import Receiver, Reply
from tests.support.notifier_harness import Open
from tests.support.rows import column

DAY = 24 * HOUR
DELIVERY = "secrets_bridge_worker.notification_delivery"
MANY = """
WITH event AS (
    INSERT INTO secrets_bridge_worker.notification_event
           (created_at, kind, component, severity, title, detail, metadata)
    SELECT now() - %(age)s::interval - number * interval '1 s', 'swept', 'agents-stale', 'warn', 'flagged stale', '',
           '{"flipped": 3}'
      FROM generate_series(1, %(number)s) AS number RETURNING id, created_at
)
INSERT INTO secrets_bridge_worker.notification_delivery (event_id, target, state, reason, queued_at, finished_at)
SELECT id, 'webhook', %(state)s, '', created_at, CASE %(state)s WHEN 'dead' THEN created_at END FROM event
"""


def insert(sql: Connection[Any], number: int, state: str = "pending", age: str = "0 s") -> None:
    sql.execute(MANY.encode(), {"number": number, "state": state, "age": age})
    sql.execute("VACUUM ANALYZE secrets_bridge_worker.notification_event")
    sql.execute("VACUUM ANALYZE secrets_bridge_worker.notification_delivery")


def samples(families: Iterable[GaugeMetricFamily]) -> dict[str, float]:
    return {f"{one.name} {one.labels.get('sink', '')}".strip(): one.value for many in families for one in many.samples}


def test_a_digest_of_a_large_backlog_is_made_in_little_memory(
    harness: Open, receiver: Receiver, sql: Connection[Any]
) -> None:
    here = harness(**hook(receiver))
    insert(sql, 20_000)
    (first,) = column(sql, f"SELECT min(id) FROM {DELIVERY}")
    tracemalloc.start()
    try:
        batch = here.claim(first)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert batch is not None
    (claimed,) = batch.deliveries
    assert claimed.events == 20_000
    assert claimed.notification.event.metadata == {"flipped": 60_000, "events": 20_000}
    assert peak < 8 * 2**20


def test_a_digest_has_the_sums_of_what_it_is_made_of(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver))
    here.tell(*(event(number, component=name) for name in ("b", "a") for number in (1, 2, 3, 4)))
    here.work()
    told = {seen.json["component"]: seen.json["metadata"] for seen in receiver.seen}
    assert told == {"a": {"deleted": 10, "events": 4}, "b": {"deleted": 10, "events": 4}}


def test_a_digest_of_several_components_has_the_sums_of_each(harness: Open, receiver: Receiver) -> None:
    here = harness(SB_NOTIFICATION_PAGERDUTY_ROUTING_KEY=KEY, SB_NOTIFICATION_PAGERDUTY_URL=receiver.url)
    here.tell(*(event(number, component=name, severity=Severity.ERROR) for name in ("b", "a") for number in (1, 2, 3)))
    here.work()
    (seen,) = receiver.seen
    details = seen.json["payload"]["custom_details"]
    expected = {"events": 6, "a.events": 3, "a.deleted": 6, "b.events": 3, "b.deleted": 6}
    assert {name: details[name] for name in expected} == expected


def rows_read(plan: dict[str, Any]) -> int:
    """Return how many rows a plan's leaves have read, those that were filtered out too."""
    parts = plan.get("Plans", [])
    own = 0 if parts else int((plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"])
    return own + sum(rows_read(part) for part in parts)


FEW = {"targets": ["webhook"], "fingerprints": ["x"], "most": 500, "foreign": 10, "redeliver_after": 10 * SECOND}
ROUND: dict[str, tuple[str, dict[str, Any]]] = {
    "give_up": (relay.GIVE_UP, {"age": DAY}),
    "due": (relay.DUE, {**FEW, "farthest": HOUR, "mute_ahead": HOUR}),
    "put_right": (relay.PUT_RIGHT, {"farthest": HOUR}),
}


@pytest.mark.parametrize("what", ROUND)
def test_a_round_of_the_relay_does_not_read_dead_letters(sql: Connection[Any], what: str) -> None:
    insert(sql, 20_000, "dead", "10 d")
    insert(sql, 10)
    query, parameters = ROUND[what]
    explained = f"EXPLAIN (ANALYZE, FORMAT JSON) {query}".encode()
    row = sql.cursor(row_factory=dict_row).execute(explained, parameters).fetchone()
    assert row is not None
    assert rows_read(row["QUERY PLAN"][0]["Plan"]) < 1000


def test_pruning_looks_at_a_bounded_piece_and_comes_to_all(
    sql: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MOST_PRUNED", 100)
    insert(sql, 250, "dead", "20 d")
    insert(sql, 30, "dead", "100 d")
    pruner = Pruner(7 * DAY, 90 * DAY)
    left = []
    for _ in range(4):
        pruner.prune(sql)
        left += column(sql, f"SELECT count(*) FROM {DELIVERY}")
    assert left == [250] * 4
    sql.execute("UPDATE secrets_bridge_worker.notification_delivery SET finished_at = finished_at - interval '90 d'")
    for _ in range(5):
        pruner.prune(sql)
    assert column(sql, "SELECT count(*) FROM secrets_bridge_worker.notification_event") == [0]


def test_dead_letters_are_kept_as_long_as_they_should(harness: Open, receiver: Receiver, sql: Connection[Any]) -> None:
    receiver.answer = Reply(400)
    here = harness(**hook(receiver), **OPEN_GATES, SB_NOTIFICATION_DEAD_RETENTION="240h")
    here.tell(event(1))
    here.work()
    for days, kept in ((9, 1), (2, 0)):
        sql.execute("UPDATE secrets_bridge_worker.notification_event SET created_at = created_at - %s", [days * DAY])
        sql.execute(
            "UPDATE secrets_bridge_worker.notification_delivery SET finished_at = finished_at - %s", [days * DAY]
        )
        here.later(SECOND)
        assert len(here.rows) == kept


def test_gauges_that_cannot_be_read_are_those_of_before(database: str, sql: Connection[Any]) -> None:
    insert(sql, 3, "dead")
    with ConnectionPool[Connection[Any]](
        database, kwargs={"autocommit": True}, min_size=0, max_size=2, open=True
    ) as pool:
        gauges = NotificationCollector(pool, ["webhook"])
        before = samples(gauges.collect())
        assert before["worker_notification_dead webhook"] == 3
        with sql.transaction():
            sql.execute("LOCK TABLE secrets_bridge_worker.notification_delivery")
            during = samples(gauges.collect())
    age = "worker_notification_gauges_age_seconds"
    assert during.pop(age) > before.pop(age) >= 0
    assert during == before


def test_a_scrape_counts_no_more_than_it_has_time_for(
    database: str, sql: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "MOST_COUNTED", 100)
    insert(sql, 150, "dead")
    with ConnectionPool[Connection[Any]](
        database, kwargs={"autocommit": True}, min_size=0, max_size=2, open=True
    ) as pool:
        assert samples(NotificationCollector(pool, ["webhook"]).collect())["worker_notification_dead webhook"] == 100


def test_what_waits_for_a_lock_gives_up(harness: Open, receiver: Receiver, sql: Connection[Any]) -> None:
    here = harness(**hook(receiver))
    here.tell(event(1))
    with sql.transaction():
        sql.execute("LOCK TABLE secrets_bridge_worker.notification_delivery")
        here.work()  # comes back, although nobody lets go
        assert not here.notifier.relay()
    here.later(20 * SECOND)
    assert here.states == {"delivered": 1}
