"""From an event to its end: retries, breaker, switched-off sinks, digests, holds, and sums that agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from psycopg_pool import ConnectionPool
from structlog.testing import capture_logs

from app.core.errors import Fault, SinkUnavailable
from app.core.events import Event, Kind, Severity
from app.notify.policy import BREAKER_FAILURES
from tests.sinks.test_answers import KEY
from tests.support.http_server import Receiver, Reply
from tests.support.notifier_harness import NotifierHarness
from tests.support.outcome import LOOPBACK, configured
from tests.support.tls import Authority

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
OPEN_GATES = {
    "SB_NOTIFICATION_REPEAT_INTERVAL": "0s",
    "SB_NOTIFICATION_PACE": "0s",
    "SB_NOTIFICATION_DIGEST_OVER": "0",
}
Open = Callable[..., NotifierHarness]


def event(number: int = 1, *, component: str = "wraps-expired", severity: Severity = Severity.WARN) -> Event:
    return Event(component, severity, "expired wraps purged", "", {"deleted": number})


def failed(component: str = "wraps-expired") -> Event:
    return Event(component, Severity.ERROR, "delete expired wraps failed", "Timeout", kind=Kind.FAILED)


def recovered(component: str = "wraps-expired") -> Event:
    return Event(component, Severity.INFO, "sweep recovered", "", {"failed_attempts": 2}, Kind.RECOVERED)


@pytest.fixture
def harness(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Give a function that opens a desk for the sinks that these variables configure."""
    with ExitStack() as stack:
        pool = stack.enter_context(
            ConnectionPool[Connection[Any]](database, kwargs={"autocommit": True}, min_size=0, max_size=4, open=True)
        )

        def opened(**env: str) -> NotifierHarness:
            return stack.enter_context(NotifierHarness(pool, configured(monkeypatch, {**LOOPBACK, **env})))

        yield opened


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


def hook(receiver: Receiver, **env: str) -> dict[str, str]:
    return {"SB_NOTIFICATION_WEBHOOK_URL": receiver.url, **env}


def test_one_delivery_for_each_sink_with_the_same_id(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), SB_NOTIFICATION_DISCORD_URL=receiver.url)
    here.tell(event())
    here.work()
    assert here.states == {"delivered": 2}
    webhook, discord = sorted(receiver.seen, key=lambda seen: "embeds" in seen.json)
    assert webhook.headers["webhook-id"] in discord.json["embeds"][0]["footer"]["text"]


def test_an_event_is_delivered_only_when_its_transaction_is_committed(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver))
    from psycopg.rows import dict_row  # noqa: PLC0415

    with here.pool.connection() as connection, connection.transaction(force_rollback=True):
        here.outbox.write(connection.cursor(row_factory=dict_row), [event()])
    here.notifier.relay()
    here.work()
    assert receiver.seen == []


def test_a_message_too_many_delivers_nothing_twice(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver))
    here.tell(event())
    here.queue.extend(list(here.queue) * 3)
    here.work()
    here.later(HOUR)
    assert len(receiver.seen) == 1


def test_what_redis_lost_is_triggered_by_the_relay(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver))
    here.tell(event())
    here.queue.clear()
    here.later(SECOND)
    assert here.states == {"pending": 1}  # a message may still be on its way
    here.later(10 * SECOND)
    assert here.states == {"delivered": 1}


def test_a_client_error_is_not_repeated(harness: Open, receiver: Receiver) -> None:
    receiver.answer = Reply(422)
    here = harness(**hook(receiver))
    here.tell(event())
    with capture_logs() as records:
        here.work().later(HOUR).later(HOUR)
    assert here.states == {"dead client_error": 1}
    assert len(receiver.seen) == 1
    (joined,) = [record for record in records if record["event"] == "notification did not reach every sink"]
    assert joined["sinks"] == ["webhook: dead client_error 422"]


def test_a_server_error_is_repeated_with_waits_that_double(harness: Open, receiver: Receiver) -> None:
    receiver.answer = Reply(503)
    here = harness(**hook(receiver))
    here.tell(event())
    waits = []
    for _ in range(4):
        here.work()
        (wait,) = here.again.values()
        waits.append(wait / SECOND)
        here.later(wait)
    for number, seconds in enumerate(waits):
        assert 0.8 * 2**number <= seconds <= 1.2 * 2**number
    receiver.answer = Reply(200)
    here.later(HOUR)
    assert here.states == {"delivered": 1}
    assert len({seen.headers["webhook-id"] for seen in receiver.seen}) == 1
    assert len({seen.body for seen in receiver.seen}) == 1


def test_it_is_given_up_by_age_and_then_it_is_dead(harness: Open, receiver: Receiver) -> None:
    receiver.answer = Reply(503)
    here = harness(**hook(receiver))
    here.tell(event())
    here.work()
    here.later(timedelta(hours=25))
    assert here.states == {"dead gave_up": 1}
    asked = len(receiver.seen)
    here.later(HOUR)
    assert len(receiver.seen) == asked


def test_a_bad_sink_does_not_block_its_siblings(harness: Open, receiver: Receiver) -> None:
    with Receiver(Reply(500)) as bad:
        here = harness(**hook(bad), SB_NOTIFICATION_DISCORD_URL=receiver.url, **OPEN_GATES)
        here.tell(*(event(number) for number in range(20)))
        here.work()
    assert len(receiver.seen) == 20


def test_the_breaker_bounds_requests_and_one_probe_closes_it(harness: Open, receiver: Receiver) -> None:
    receiver.answer = Reply(500)
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(*(event(number) for number in range(100)))
    here.work()
    assert len(receiver.seen) == BREAKER_FAILURES
    here.later(5 * SECOND)
    assert len(receiver.seen) == BREAKER_FAILURES  # it rests
    here.later(30 * SECOND)
    assert len(receiver.seen) == BREAKER_FAILURES + 1  # one probe, and it failed
    here.later(31 * SECOND)
    assert len(receiver.seen) == BREAKER_FAILURES + 1  # so it rests for twice as long
    receiver.answer = Reply(200)
    here.later(40 * SECOND)
    for _ in range(3):
        here.later(SECOND)
    assert here.states == {"delivered": 100}


def test_attempts_under_way_when_the_breaker_opens_do_not_open_it_further(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(*(event(number) for number in range(8)))
    deliveries = here.notifier.deliveries
    with here.pool.connection() as connection:
        claimed = [deliveries.claim(connection, number) for number in here.queue]
        for one in claimed:
            assert one is not None
            deliveries.settle(connection, one, SinkUnavailable(Fault.SERVER_ERROR, "503"))
        trips = connection.execute("SELECT failures, trips FROM secrets_bridge_worker.notification_target").fetchone()
    assert trips == (8, 1)


def test_a_digest_is_the_same_on_every_attempt(harness: Open, receiver: Receiver) -> None:
    receiver.answer = Reply(503)
    here = harness(**hook(receiver))
    here.tell(*(event(number, component=name) for number, name in enumerate(["a", "b", "c", "d", "e"])))
    here.work().later(2 * SECOND)
    first, second = receiver.seen
    assert first.json["title"] == "5 notifications"
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])


def test_an_attempt_whose_sink_is_not_configured_any_more_dies_too(
    harness: Open, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = harness(**hook(receiver))
    here.tell(event())
    with here.pool.connection() as connection:
        here.notifier.deliveries.claim(connection, here.queue[0])
    monkeypatch.delenv("SB_NOTIFICATION_WEBHOOK_URL")
    other = harness()
    other.later(timedelta(hours=25))
    assert other.states == {"dead gave_up": 1}


def test_after_an_outage_one_digest_catches_up(harness: Open, receiver: Receiver) -> None:
    receiver.answer = Reply(500)
    here = harness(**hook(receiver), SB_NOTIFICATION_REPEAT_INTERVAL="0s", SB_NOTIFICATION_PACE="0s")
    here.tell(event(1))
    for _ in range(BREAKER_FAILURES):
        here.work().later(20 * SECOND)
    here.tell(*(event(number) for number in range(2, 52)))
    here.work()
    receiver.seen.clear()
    receiver.answer = Reply(200)
    here.later(HOUR)
    here.later(SECOND)
    first, second = receiver.seen
    assert first.json["metadata"] == {"deleted": 1}
    assert second.json["metadata"] == {"deleted": sum(range(2, 52)), "events": 50}
    assert here.states == {"delivered": 2, "digested": 50}


@pytest.mark.parametrize(("status", "reason"), [(401, "auth"), (410, "client_error")])
def test_a_sink_that_is_gone_or_locked_is_switched_off_until_its_configuration_changes(
    harness: Open, receiver: Receiver, status: int, reason: str
) -> None:
    receiver.answer = Reply(status)
    with Receiver() as other:
        here = harness(**hook(receiver), **OPEN_GATES, SB_NOTIFICATION_DISCORD_URL=other.url)
        here.tell(event(1), event(2), event(3))
        with capture_logs() as records:
            here.work().later(HOUR)
        assert len(receiver.seen) == 1
        assert any(record["event"] == "sink switched off until its configuration changes" for record in records)
        loud = [seen.json["content"] for seen in other.seen if "switched off" in seen.json["content"]]
        assert loud == ["[error] notification sink switched off: webhook"]
        assert here.states[f"dead {reason}"] == 1
        receiver.answer = Reply(200)
        changed = harness(**hook(receiver), **OPEN_GATES, SB_NOTIFICATION_WEBHOOK_MIN_SEVERITY="warn")
        changed.later(SECOND).later(SECOND)
    assert changed.states["pending"] == 0
    assert sum(seen.json["metadata"].get("events", 1) for seen in receiver.seen[1:]) == 2


def test_a_certificate_that_is_not_trusted_alarms_at_once_and_is_tried_again(harness: Open, tmp_path: Path) -> None:
    with Receiver(tls=Authority(tmp_path).server()) as stranger:
        here = harness(**hook(stranger))
        here.tell(event())
        with capture_logs() as records:
            here.work().later(2 * SECOND)
    alarms = [record for record in records if record["event"].startswith("sink's certificate is not trusted")]
    assert [alarm["log_level"] for alarm in alarms] == ["error"]
    assert here.states == {"pending tls": 1}
    assert here.rows[0]["attempts"] == 2


def test_a_rate_limit_is_kept_for_the_whole_sink(harness: Open, receiver: Receiver) -> None:
    receiver.answer = Reply(429, headers={"Retry-After": "40"})
    here = harness(SB_NOTIFICATION_DISCORD_URL=receiver.url, **OPEN_GATES)
    here.tell(event(1), event(2), event(3))
    here.work().later(20 * SECOND)
    assert len(receiver.seen) == 1
    receiver.answer = Reply(204, b"")
    here.later(30 * SECOND).later(SECOND)
    assert here.states == {"delivered": 3}


def test_a_storm_is_a_handful_of_messages_and_the_sums_agree(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver))
    names = ["wraps-expired", "agents-stale", "secrets-stale", "jobs-recovery"]
    for _ in range(10):
        here.tell(*(event(2, component=names[number % 4]) for number in range(100)))
        here.work()
        here.later(6 * SECOND)
    for _ in range(30):
        here.later(MINUTE)
    assert len(receiver.seen) <= 12
    assert sum(seen.json["metadata"].get("events", 1) for seen in receiver.seen) == 1000
    finals = {"delivered", "digested"}
    assert {row["state"] for row in here.rows} == finals
    digests = {row["id"] for row in here.rows if row["metadata"].get("events")}
    members = [row for row in here.rows if row["id"] not in digests]
    assert len(members) == 1000
    assert all(row["state"] == "delivered" or row["digest"] in digests for row in members)
    assert all(row["state"] == "delivered" for row in here.rows if row["id"] in digests)


def test_a_flapping_agent_is_told_at_once_and_then_in_sums(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver))
    for _ in range(60):
        here.tell(event(1, component="agents-stale"))
        here.work()
        here.later(MINUTE)
    here.later(10 * MINUTE)
    assert receiver.seen[0].json["metadata"] == {"deleted": 1}
    assert len(receiver.seen) <= 14
    assert sum(seen.json["metadata"]["deleted"] for seen in receiver.seen) == 60
    assert {seen.json["component"] for seen in receiver.seen} == {"agents-stale"}


def test_what_a_sink_does_not_want_is_suppressed_with_the_reason(harness: Open, receiver: Receiver) -> None:
    here = harness(
        **hook(receiver), SB_NOTIFICATION_WEBHOOK_MIN_SEVERITY="warn", SB_NOTIFICATION_WEBHOOK_SWEEPERS="-agents-stale"
    )
    here.tell(event(severity=Severity.INFO), event(component="agents-stale"), event(), recovered())
    here.work().later(HOUR)
    assert here.states == {"suppressed severity": 1, "suppressed sweeper": 1, "delivered": 2}


def test_an_incident_ends_after_it_began(harness: Open, receiver: Receiver) -> None:
    receiver.answer = Reply(503)
    here = harness(SB_NOTIFICATION_PAGERDUTY_ROUTING_KEY=KEY, SB_NOTIFICATION_PAGERDUTY_URL=receiver.url)
    here.tell(failed())
    here.work()
    here.tell(recovered(), failed("agents-stale"))
    receiver.answer = Reply(202)
    here.work()
    told = [(seen.json["event_action"], seen.json["dedup_key"].rpartition("/")[2]) for seen in receiver.seen]
    assert told == [("trigger", "wraps-expired"), ("trigger", "agents-stale")]
    here.later(5 * SECOND).later(SECOND)
    told = [(seen.json["event_action"], seen.json["dedup_key"].rpartition("/")[2]) for seen in receiver.seen[2:]]
    assert told == [("trigger", "wraps-expired"), ("resolve", "wraps-expired")]


def test_many_turns_of_an_incident_end_as_the_last_one(harness: Open, receiver: Receiver) -> None:
    here = harness(SB_NOTIFICATION_PAGERDUTY_ROUTING_KEY=KEY, SB_NOTIFICATION_PAGERDUTY_URL=receiver.url)
    for _ in range(10):
        here.tell(failed(), recovered())
    here.work()
    assert [seen.json["event_action"] for seen in receiver.seen] == ["resolve"]
    assert here.states == {"delivered": 1, "digested": 20}


def test_an_attempt_that_nobody_settled_is_made_again_with_the_same_id(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver))
    here.tell(event())
    with here.pool.connection() as connection:
        claimed = here.notifier.deliveries.claim(connection, here.queue[0])
        assert claimed is not None
        assert here.notifier.deliveries.claim(connection, here.queue[0]) is None  # its lease is held
    here.queue.clear()
    here.later(16 * SECOND)
    assert here.states == {"delivered": 1}
    assert receiver.seen[0].headers["webhook-id"] == claimed.notification.id
    with here.pool.connection() as connection:  # the first one comes back too late
        assert here.notifier.deliveries.settle(connection, claimed, None) is None


def test_a_delivery_for_a_sink_that_is_not_configured_here_waits_and_then_dies(
    harness: Open, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = harness(**hook(receiver))
    here.tell(event())
    monkeypatch.delenv("SB_NOTIFICATION_WEBHOOK_URL")
    other = harness()
    other.later(HOUR)
    assert other.states == {"pending": 1}
    other.later(timedelta(hours=24))
    assert other.states == {"dead gave_up": 1}


def test_what_is_done_is_pruned_and_dead_letters_stay(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(event(1))
    here.work()
    receiver.answer = Reply(400)
    here.tell(event(2))
    here.work()
    with here.pool.connection() as connection:
        connection.execute("UPDATE secrets_bridge_worker.notification_event SET created_at = now() - interval '8 days'")
    here.later(SECOND)
    assert here.states == {"dead client_error": 1}
