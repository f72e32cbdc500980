"""A row that cannot be read, or a table that a newer release has changed, hurts nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import Connection
from structlog.testing import capture_logs

from app.core.events import Event, Severity
from tests.notify.test_deliveries import HOUR, OPEN_GATES, SECOND, event, hook
from tests.sinks.test_answers import KEY
from tests.support.http_server import Receiver
from tests.support.notifier_harness import Open

EVENT = "UPDATE secrets_bridge_worker.notification_event"
BAD = [
    "kind = 'kind-of-a-newer-release'",
    """metadata = '{"deleted": "three"}'""",
    """metadata = '{"deleted": 1.5}'""",
    """metadata = '{"deleted": true}'""",
    """metadata = '{"deleted": 1e999999}'""",
    """metadata = '{"deleted": {"n": 1}}'""",
    "metadata = '[1]'",
    "metadata = 'null'",
    "tallies = '[{}]'",
    "tallies = '1'",
    """tallies = '[{"component": 1, "first": "yesterday"}]'""",
]


@pytest.mark.parametrize("gates", [{}, OPEN_GATES], ids=["together", "each by itself"])
@pytest.mark.parametrize("bad", BAD)
def test_a_row_that_cannot_be_read_is_a_dead_letter_and_the_others_go_on(
    harness: Open, receiver: Receiver, sql: Connection[Any], bad: str, gates: dict[str, str]
) -> None:
    here = harness(**hook(receiver), **gates)
    here.tell(event(1))
    sql.execute(f"{EVENT} SET {bad}".encode())
    here.tell(*(Event("agents-stale", Severity.ERROR, f"ordinary {number}") for number in range(6)))
    with capture_logs() as records:
        here.work()
        for _ in range(3):
            here.later(HOUR)
    assert here.states["dead unreadable"] == 1
    assert sum(seen.json.get("metadata", {}).get("events", 1) for seen in receiver.seen) == 6
    told = [record for record in records if record.get("reason") == "unreadable"]
    assert [(record["log_level"], record["number"]) for record in told] == [("error", 1)]


def test_a_row_that_was_attempted_and_cannot_be_read_is_a_dead_letter(
    harness: Open, receiver: Receiver, sql: Connection[Any]
) -> None:
    here = harness(**hook(receiver))
    here.tell(event(1))
    assert here.claim(here.queue[0])
    sql.execute(f"{EVENT} SET kind = 'kind-of-a-newer-release'".encode())
    here.later(20 * SECOND)
    assert here.states == {"dead unreadable": 1}


def test_incidents_with_one_that_cannot_be_read_go_on(harness: Open, receiver: Receiver, sql: Connection[Any]) -> None:
    here = harness(SB_NOTIFICATION_PAGERDUTY_ROUTING_KEY=KEY, SB_NOTIFICATION_PAGERDUTY_URL=receiver.url)
    here.tell(Event("agents-stale", Severity.ERROR, "one"))
    sql.execute(f"{EVENT} SET kind = 'kind-of-a-newer-release'".encode())
    here.tell(Event("agents-stale", Severity.ERROR, "two"))
    here.work()
    assert here.states == {"dead unreadable": 1, "delivered": 1}


@pytest.mark.parametrize("table", ["notification_event", "notification_delivery", "notification_target"])
@pytest.mark.parametrize("gates", [{}, OPEN_GATES], ids=["together", "each by itself"])
def test_a_column_that_a_newer_release_adds_stops_nothing(
    harness: Open, receiver: Receiver, sql: Connection[Any], table: str, gates: dict[str, str]
) -> None:
    here = harness(**hook(receiver), **{"SB_NOTIFICATION_PACE": "0s", **gates})
    told = [Event("agents-stale", Severity.INFO, f"title {number}") for number in range(14)]
    for one in told[:8]:  # so many that every statement is prepared
        here.tell(one)
        here.work()
    sql.execute(f"ALTER TABLE secrets_bridge_worker.{table} ADD COLUMN more integer".encode())
    for one in told[8:]:
        here.tell(one)
        here.work()
    assert len(receiver.seen) == 14


def test_a_column_whose_type_a_newer_release_changes_costs_an_attempt(
    harness: Open, receiver: Receiver, sql: Connection[Any]
) -> None:
    here = harness(**hook(receiver), SB_NOTIFICATION_PACE="0s")
    for number in range(8):
        here.tell(Event("agents-stale", Severity.INFO, f"title {number}"))
        here.work()
    sql.execute("ALTER TABLE secrets_bridge_worker.notification_event ALTER COLUMN title TYPE varchar(4000)")
    here.tell(Event("agents-stale", Severity.INFO, "later"))
    here.work()
    for _ in range(6):
        here.later(20 * SECOND)
    assert here.states == {"delivered": 9}
