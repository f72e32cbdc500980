"""A muted sink: nothing is sent, nothing is lost, nothing grows old, and one digest goes when it is over."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from psycopg import Connection
from structlog.testing import capture_logs

from app.core.errors import Fault, SinkUnavailable
from app.notify import mutes
from app.notify.collector import NotificationCollector
from tests.notify.test_deliveries import event, failed, hook, recovered
from tests.sinks.test_answers import KEY
from tests.support.http_server import Receiver, Reply
from tests.support.notifier_harness import NotifierHarness, Open
from tests.support.rows import rows

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
TARGET = "SELECT muted_at, muted_until, muted_by, muted_reason FROM secrets_bridge_worker.notification_target"


def mute(here: NotifierHarness, length: timedelta, sink: str = "webhook") -> list[str]:
    with here.pool.connection() as connection:
        names, _ = mutes.mute(
            connection, sink, here.notifier.targets, length=length, by="ann@desk", reason="a planned change"
        )
    return names


def unmute(here: NotifierHarness, sink: str = "webhook") -> list[str]:
    with here.pool.connection() as connection:
        return mutes.unmute(connection, sink)


def muted(here: NotifierHarness) -> dict[str, float]:
    """Return the gauge of each receiver."""
    gauges = NotificationCollector(here.pool, list(here.notifier.targets)).collect()
    (family,) = [family for family in gauges if family.name == "worker_notification_sink_muted"]
    return {sample.labels["sink"]: sample.value for sample in family.samples}


def test_what_comes_during_a_mute_waits_and_goes_as_one_digest(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver))
    assert mute(here, 2 * HOUR) == ["webhook"]
    assert muted(here)["webhook"] == 1
    for number in range(1, 4):
        here.tell(event(number))
        here.work().later(10 * MINUTE)
    assert receiver.seen == []
    assert here.states == {"pending": 3}
    here.later(2 * HOUR)
    assert muted(here)["webhook"] == 0
    (seen,) = receiver.seen
    assert seen.json["metadata"] == {"deleted": 6, "events": 3}
    assert here.states == {"digested": 3, "delivered": 1}


def test_a_mute_of_thirty_hours_costs_nothing(harness: Open, receiver: Receiver) -> None:
    """Not what came in it, nor what was waiting before; the day that each has begins with its end."""
    receiver.answer = Reply(503)
    here = harness(**hook(receiver))
    here.tell(event(1))
    here.work()
    mute(here, 30 * HOUR)
    here.tell(event(2))
    for _ in range(31):
        here.later(HOUR)
    assert "dead gave_up" not in here.states
    here.later(22 * HOUR)
    assert "dead gave_up" not in here.states
    receiver.answer = Reply(200)
    here.later(30 * MINUTE).later(30 * MINUTE)
    assert not here.states["dead gave_up"]
    assert not here.states["pending"]


def test_after_a_mute_a_day_is_a_day(harness: Open, receiver: Receiver) -> None:
    receiver.answer = Reply(503)
    here = harness(**hook(receiver))
    mute(here, 30 * HOUR)
    here.tell(event(1))
    here.later(30 * HOUR + SECOND).later(25 * HOUR)
    assert here.states == {"dead gave_up": 1}


def test_an_attempt_that_fails_when_the_mute_is_over_is_not_too_old(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver))
    mute(here, 30 * HOUR)
    here.tell(event(1))
    with here.pool.connection() as connection:
        connection.execute(
            "UPDATE secrets_bridge_worker.notification_delivery SET queued_at = queued_at - interval '30 h'"
        )
        connection.execute(
            "UPDATE secrets_bridge_worker.notification_target"
            " SET muted_at = muted_at - interval '30 h', muted_until = muted_until - interval '30 h'"
        )
    batch = here.claim(here.rows[0]["id"])
    assert batch is not None
    here.settle(batch, SinkUnavailable(Fault.TIMEOUT))
    assert here.states == {"pending timeout": 1}


def test_every_replica_keeps_to_a_mute_and_one_of_them_ends_it(harness: Open, receiver: Receiver) -> None:
    here, other = harness(**hook(receiver)), harness(**hook(receiver))
    mute(here, HOUR)
    other.tell(event(1), event(2))
    other.work()
    here.later(MINUTE)
    assert receiver.seen == []
    assert unmute(other) == ["webhook"]
    assert unmute(other) == []
    here.later(SECOND)
    other.later(SECOND)
    assert len(receiver.seen) == 1
    assert here.states == {"digested": 2, "delivered": 1}


def test_an_attempt_under_way_ends_as_it_would_and_the_mute_stays(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver))
    here.tell(event(1))
    batch = here.claim(here.queue.popleft())
    assert batch is not None
    mute(here, HOUR)
    here.settle(batch, None)
    assert here.states == {"delivered": 1}
    here.tell(event(2), event(3))
    here.work().later(MINUTE)
    assert here.states == {"delivered": 1, "pending": 2}
    here.later(HOUR)
    assert here.states == {"delivered": 2, "digested": 2}


def test_incidents_keep_their_order_through_a_mute(harness: Open, receiver: Receiver) -> None:
    receiver.answer = Reply(202)
    here = harness(SB_NOTIFICATION_PAGERDUTY_URL=receiver.url, SB_NOTIFICATION_PAGERDUTY_ROUTING_KEY=KEY)
    mute(here, HOUR, "pagerduty")
    here.tell(failed(), recovered(), failed())
    here.work().later(MINUTE)
    assert receiver.seen == []
    here.later(HOUR).later(SECOND)
    assert [seen.json["event_action"] for seen in receiver.seen] == ["trigger"]


def test_others_are_not_muted(harness: Open, receiver: Receiver) -> None:
    with Receiver(Reply(204, b"")) as other:
        here = harness(**hook(receiver), SB_NOTIFICATION_DISCORD_URL=other.url)
        mute(here, HOUR)
        here.tell(event(1))
        here.work()
        assert len(other.seen) == 1
    assert receiver.seen == []
    assert muted(here) == {"webhook": 1, "discord": 0}


def test_a_sink_is_muted_with_all_of_its_receivers_or_one_of_them(harness: Open, sql: Connection[Any]) -> None:
    here = harness(
        SB_NOTIFICATION_EMAIL_HOST="mail.example.org",
        SB_NOTIFICATION_EMAIL_FROM="worker@example.org",
        SB_NOTIFICATION_EMAIL_TO="ann@example.org,ben@example.org",
    )
    both = sorted(here.notifier.targets)
    assert mute(here, HOUR, "email") == both
    assert unmute(here, "email") == both
    assert mute(here, HOUR, both[0]) == both[:1]
    assert mute(here, HOUR, "fax") == []
    assert mute(here, HOUR, "e") == []


def test_who_when_and_why_are_written_down(harness: Open, receiver: Receiver, sql: Connection[Any]) -> None:
    here = harness(**hook(receiver))
    mute(here, HOUR)
    mute(here, 2 * HOUR)
    (row,) = rows(sql, TARGET)
    assert (row["muted_by"], row["muted_reason"]) == ("ann@desk", "a planned change")
    assert row["muted_until"] - row["muted_at"] == 2 * HOUR


def test_a_mute_made_while_the_clock_was_ahead_lasts_as_long_as_it_was_to(
    harness: Open, receiver: Receiver, sql: Connection[Any]
) -> None:
    here = harness(**hook(receiver))
    mute(here, HOUR)
    sql.execute(
        "UPDATE secrets_bridge_worker.notification_target"
        " SET muted_at = muted_at + interval '1 y', muted_until = muted_until + interval '1 y'"
    )
    here.tell(event(1), event(2))
    with capture_logs() as records:
        here.work()
    assert [record["sink"] for record in records if record["log_level"] == "error"] == ["webhook"]
    assert receiver.seen == []
    here.later(HOUR + SECOND)
    assert len(receiver.seen) == 1


def test_a_mute_that_was_ended_does_not_come_back_with_a_clock_that_is_set_back(
    harness: Open, receiver: Receiver, sql: Connection[Any]
) -> None:
    here = harness(**hook(receiver))
    mute(here, HOUR)
    assert unmute(here) == ["webhook"]
    assert unmute(here) == []
    sql.execute(
        "UPDATE secrets_bridge_worker.notification_target"
        " SET muted_at = muted_at + interval '90 min', muted_until = muted_until + interval '2 h'"
    )
    here.tell(event(1))
    here.work()
    assert (len(receiver.seen), muted(here)["webhook"]) == (1, 0)
