"""Times that were written while the database's clock was ahead: what waits for them does not wait that long."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from structlog.testing import capture_logs

from app.core.events import Event, Severity
from tests.notify.test_deliveries import HOUR, MINUTE, OPEN_GATES, SECOND, event, hook
from tests.support.http_server import Receiver
from tests.support.notifier_harness import Open
from tests.support.rows import column

AHEAD = timedelta(days=3)
TARGET = "UPDATE secrets_bridge_worker.notification_target SET "
DELIVERY = "UPDATE secrets_bridge_worker.notification_delivery SET "
WRONG = [
    TARGET + "paced_until = now() + interval '3 d'",
    TARGET + "rests_until = now() + interval '3 d'",
    TARGET + "failures = 9, probe_until = now() + interval '3 d'",
    TARGET + "off_fingerprint = %(fingerprint)s, off_at = now() + interval '3 d', off_until = now() + interval '3 d'",
    "UPDATE secrets_bridge_worker.notification_hold SET until = now() + interval '3 d'",
    DELIVERY + "due_at = now() + interval '3 d' WHERE state = 'pending'",
    DELIVERY + "due_at = now() + interval '3 d', attempts = 3, reason = 'timeout' WHERE state = 'pending'",
    DELIVERY + "nudged_at = now() + interval '3 d' WHERE state = 'pending'",
    DELIVERY + "state = 'sending', attempts = 1, lease_until = now() + interval '3 d' WHERE state = 'pending'",
]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_waits_for_a_time_too_far_ahead_goes_out(
    harness: Open, receiver: Receiver, sql: Connection[Any], wrong: str
) -> None:
    here = harness(**hook(receiver))
    target = here.notifier.targets["webhook"]
    here.tell(event(1))
    here.work()
    here.tell(event(1))
    here.queue.clear()
    sql.execute(wrong.encode(), {"fingerprint": target.fingerprint} if "fingerprint" in wrong else None)
    with capture_logs() as records:
        for _ in range(16):
            here.later(5 * MINUTE)
    assert here.states["pending"] == here.states["sending"] == 0
    assert sum(seen.json["metadata"].get("events", 1) for seen in receiver.seen) == 2
    told = [record for record in records if record["event"].startswith("times too far ahead")]
    assert len(told) == ("nudged_at" not in wrong)
    for record in told:
        assert (record["log_level"], record["sink"]) == ("error", "webhook")
        assert record["times"]
        assert 2 * 24 * HOUR < record["ahead"] <= AHEAD


def test_a_replay_may_be_as_late_as_it_was_asked_to(harness: Open, receiver: Receiver, sql: Connection[Any]) -> None:
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(event(1))
    later = "due_at = now() + interval '30 h', queued_at = now() + interval '30 h', attempts = 1"
    sql.execute((DELIVERY + later).encode())
    here.queue.clear()
    here.later(29 * HOUR)
    assert here.states == {"pending": 1}
    here.later(HOUR + SECOND)
    assert here.states == {"delivered": 1}


def test_an_event_of_a_clock_that_is_ahead_is_sent(harness: Open, receiver: Receiver, sql: Connection[Any]) -> None:
    here = harness(**hook(receiver))
    here.tell(Event("agents-stale", Severity.WARN, "flagged"))
    here.queue.clear()
    sql.execute((DELIVERY + "due_at = due_at + interval '3 d', nudged_at = nudged_at + interval '3 d'").encode())
    here.later(SECOND)
    assert here.states == {"delivered": 1}
    assert column(sql, "SELECT count(*) FROM secrets_bridge_worker.notification_delivery WHERE state = 'dead'") == [0]
