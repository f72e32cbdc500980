"""From an event to its end: retries, breaker, switched-off sinks, digests, holds, and sums that agree."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import dict_row
from structlog.testing import capture_logs

from app.core.errors import Fault, SinkUnavailable
from app.core.events import Event, Kind, Severity
from app.notify import dead_letters
from app.notify.dead_letters import DeliveryFilter
from app.notify.notifier import RetryLater
from app.notify.policy import BREAKER_FAILURES
from tests.sinks.test_answers import KEY
from tests.support.http_server import Receiver, Reply
from tests.support.notifier_harness import Open
from tests.support.rows import column
from tests.support.tls import Authority

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
OPEN_GATES = {
    "SB_NOTIFICATION_REPEAT_INTERVAL": "0s",
    "SB_NOTIFICATION_PACE": "0s",
    "SB_NOTIFICATION_DIGEST_OVER": "0",
}


def event(number: int = 1, *, component: str = "wraps-expired", severity: Severity = Severity.WARN) -> Event:
    return Event(component, severity, "expired wraps purged", "", {"deleted": number})


def failed(component: str = "wraps-expired") -> Event:
    return Event(component, Severity.ERROR, "delete expired wraps failed", "Timeout", kind=Kind.FAILED)


def recovered(component: str = "wraps-expired") -> Event:
    return Event(component, Severity.INFO, "sweep recovered", "", {"failed_attempts": 2}, Kind.RECOVERED)


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
    here = harness(**hook(receiver), **OPEN_GATES, SB_NOTIFICATION_BREAKER_COOLDOWN="5m")
    here.tell(*(event(number) for number in range(100)))
    here.work()
    assert len(receiver.seen) == BREAKER_FAILURES
    here.later(MINUTE)
    assert len(receiver.seen) == BREAKER_FAILURES  # it rests
    here.later(5 * MINUTE)
    assert len(receiver.seen) == BREAKER_FAILURES + 1  # one probe, and it failed
    here.later(6 * MINUTE)
    assert len(receiver.seen) == BREAKER_FAILURES + 1  # so it rests for twice as long
    receiver.answer = Reply(200)
    here.later(5 * MINUTE)
    for _ in range(3):
        here.later(SECOND)
    assert here.states == {"delivered": 100}


def test_attempts_under_way_when_the_breaker_opens_do_not_open_it_further(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(*(event(number) for number in range(8)))
    batch = here.claim(here.queue[0])
    assert batch is not None
    for delivery in batch.deliveries:
        here.settle(batch._replace(deliveries=(delivery,)), SinkUnavailable(Fault.SERVER_ERROR, "503"))
    with here.pool.connection() as connection:
        trips = connection.execute("SELECT failures, trips FROM secrets_bridge_worker.notification_target").fetchone()
    assert trips == (8, 1)


def test_a_digest_is_the_same_on_every_attempt(harness: Open, receiver: Receiver) -> None:
    receiver.answer = Reply(503)
    here = harness(**hook(receiver))
    here.tell(*(event(number) for number in range(5)))
    here.work().later(2 * SECOND)
    first, second = receiver.seen
    assert first.json["metadata"] == {"deleted": 10, "events": 5}
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])


def test_an_attempt_whose_sink_is_not_configured_any_more_dies_too(
    harness: Open, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = harness(**hook(receiver))
    here.tell(event())
    here.claim(here.queue[0])
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
        named = {"SB_NOTIFICATION_DISCORD_URL": other.url, "SB_WORKER_NAME": "prod-eu"}
        here = harness(**hook(receiver), **OPEN_GATES, **named)
        here.tell(event(1), event(2), event(3))
        with capture_logs() as records:
            here.work().later(5 * MINUTE)
        assert len(receiver.seen) == 1
        assert any(record["event"] == "sink switched off until its configuration changes" for record in records)
        loud = [seen.json["content"] for seen in other.seen if "switched off" in seen.json["content"]]
        assert loud == ["[error] prod-eu: notification sink switched off: webhook"]
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
    receiver.answer = Reply(429, headers={"Retry-After": "400"})
    here = harness(SB_NOTIFICATION_DISCORD_URL=receiver.url, **OPEN_GATES)
    here.tell(event(1), event(2), event(3))
    here.work().later(MINUTE)
    assert len(receiver.seen) == 1
    receiver.answer = Reply(204, b"")
    here.later(6 * MINUTE).later(SECOND)
    assert here.states == {"delivered": 3}


def test_a_storm_is_a_handful_of_messages_and_the_sums_agree(harness: Open, receiver: Receiver) -> None:
    # All times are twenty times the defaults and the usual: so what the test itself takes does not count.
    slow = {"SB_NOTIFICATION_REPEAT_INTERVAL": "100m", "SB_NOTIFICATION_PACE": "5m"}
    here = harness(**hook(receiver), **slow)
    names = ["wraps-expired", "agents-stale", "secrets-stale", "jobs-recovery"]
    for _ in range(10):
        here.tell(*(event(2, component=names[number % 4]) for number in range(100)))
        here.work()
        here.later(2 * MINUTE)
    for _ in range(30):
        here.later(20 * MINUTE)
    assert len(receiver.seen) <= 12
    assert sum(seen.json["metadata"].get("events", 1) for seen in receiver.seen) == 1000
    finals = {"delivered", "digested"}
    assert {row["state"] for row in here.rows} == finals
    digests = {row["id"] for row in here.rows if row["metadata"].get("events")}
    members = [row for row in here.rows if row["id"] not in digests]
    assert len(members) == 1000
    assert all(row["state"] == "delivered" or row["digest"] in digests for row in members)
    assert all(row["state"] == "delivered" for row in here.rows if row["id"] in digests)


def test_a_webhook_gets_digests_of_one_component_each(harness: Open, receiver: Receiver) -> None:
    """Receivers route by the component; `notifications` would be one that they have never heard of."""
    open_pace = {"SB_NOTIFICATION_PACE": "0s", "SB_NOTIFICATION_REPEAT_INTERVAL": "0s"}
    here = harness(**hook(receiver, SB_NOTIFICATION_DISCORD_URL=receiver.url, **open_pace))
    receiver.answer = Reply(500)
    here.tell(event())
    here.work()
    for _ in range(4):  # an outage, after which everything is caught up with
        here.later(MINUTE)
    for number in range(8):
        here.tell(*(event(number, component=name) for name in ("wraps-expired", "agents-stale", "secrets-stale")))
    here.queue.clear()
    receiver.answer = Reply(200)
    receiver.seen.clear()
    for _ in range(6):
        here.later(10 * MINUTE)
    hooks = [seen.json for seen in receiver.seen if "component" in seen.json]
    digests = {told["component"]: told["metadata"] for told in hooks if told["metadata"].get("events", 1) > 1}
    sums = {"deleted": sum(range(8)), "events": 8}
    assert digests == {"wraps-expired": sums, "agents-stale": sums, "secrets-stale": sums}
    assert len(hooks) == 4  # and the one that was attempted before
    told = [seen.json["embeds"][0] for seen in receiver.seen if "embeds" in seen.json]
    assert "notifications" in "".join(embed["footer"]["text"] for embed in told)  # people are told in one message
    assert {row["state"] for row in here.rows} == {"delivered", "digested"}


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
    with here.pool.connection() as connection:  # its retry is not due for as long as this test may take
        connection.execute("UPDATE secrets_bridge_worker.notification_delivery SET due_at = due_at + interval '1 hour'")
    here.tell(recovered(), failed("agents-stale"))
    receiver.answer = Reply(202)
    here.work()
    told = [(seen.json["event_action"], seen.json["dedup_key"].rpartition("/")[2]) for seen in receiver.seen]
    assert told == [("trigger", "wraps-expired"), ("trigger", "agents-stale")]
    here.later(HOUR + 5 * SECOND).later(SECOND)
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
    batch = here.claim(here.queue[0])
    assert batch is not None
    assert here.claim(here.queue[0]) is None  # its lease is held
    here.queue.clear()
    here.later(here.notifier.settings.lease + SECOND)
    assert here.states == {"delivered": 1}
    assert receiver.seen[0].headers["webhook-id"] == batch.deliveries[0].notification.id
    assert here.settle(batch, None).outcomes == ()  # the first one comes back too late


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


def test_a_replay_reaches_people_as_one_and_keeps_its_id(harness: Open, receiver: Receiver) -> None:
    receiver.answer = Reply(400)
    here = harness(SB_NOTIFICATION_DISCORD_URL=receiver.url, SB_WORKER_NAME="prod-eu")
    here.tell(event())
    here.work()
    receiver.answer = Reply(204, b"")
    with here.pool.connection() as connection:
        assert dead_letters.replay(connection, DeliveryFilter(), per_second=1) == ["discord"]
    here.later(SECOND)
    first, again = (seen.json for seen in receiver.seen)
    assert first["content"] == "[warn] prod-eu: expired wraps purged (deleted=1)"
    assert again["content"] == "[replayed] [warn] prod-eu: expired wraps purged (deleted=1)"
    assert again["embeds"][0]["footer"] == first["embeds"][0]["footer"]
    assert again["embeds"][0]["description"].startswith("replayed by hand; first told at 20")


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


def test_an_event_has_its_own_age_also_in_a_digest(harness: Open, receiver: Receiver) -> None:
    receiver.answer = Reply(503)
    here = harness(**hook(receiver))
    here.tell(event(1))
    for _ in range(BREAKER_FAILURES):
        here.work().later(20 * SECOND)
    here.later(12 * HOUR)
    here.tell(event(2))
    here.later(11 * HOUR)
    here.tell(event(3))
    for _ in range(14):  # the first is given up, the others are in one digest
        here.work().later(10 * MINUTE)
    assert here.states["digested"] == 2
    here.later(11 * HOUR)  # the older one of them would be too old by itself
    receiver.answer = Reply(200)
    receiver.seen.clear()
    here.later(HOUR)
    assert here.states["dead gave_up"] == 1
    assert receiver.seen[0].json["metadata"]["events"] == 2


def test_a_sink_is_told_to_be_off_in_the_transaction_that_switches_it_off(
    harness: Open, receiver: Receiver, sql: Connection[Any]
) -> None:
    receiver.answer = Reply(401)
    with Receiver() as other:
        here = harness(**hook(receiver), **OPEN_GATES, SB_NOTIFICATION_DISCORD_URL=other.url)
        here.tell(event(1))
        table = "ALTER TABLE secrets_bridge_worker.notification_event"
        sql.execute(f"{table} ADD CONSTRAINT quiet CHECK (kind <> 'notice')".encode())
        here.work()
        off = "SELECT name FROM secrets_bridge_worker.notification_target WHERE off_fingerprint IS NOT NULL"
        assert column(sql, off) == []  # neither
        sql.execute(f"{table} DROP CONSTRAINT quiet".encode())
        here.later(HOUR)
        assert column(sql, off) == ["webhook"]
        assert here.states["delivered"] == 2


@pytest.mark.parametrize("gates", [{}, OPEN_GATES], ids=["together", "each by itself"])
def test_a_sink_that_is_off_is_probed_slowly_and_comes_back_by_itself(
    harness: Open, receiver: Receiver, gates: dict[str, str]
) -> None:
    receiver.answer = Reply(401)
    here = harness(**hook(receiver), **gates)
    here.tell(event(1))
    here.work()
    here.tell(*(event(number, component=name) for number, name in enumerate("abcde")))
    for _ in range(12):
        here.work().later(5 * MINUTE)
    assert 1 + 4 <= len(receiver.seen) <= 1 + 6  # every ten minutes
    before = len(receiver.seen)
    for _ in range(24):
        here.work().later(10 * MINUTE)
    assert before + 3 <= len(receiver.seen) <= before + 5  # hourly
    assert here.states["dead auth"] == 1  # a probe costs nothing
    receiver.answer = Reply(200)
    receiver.seen.clear()
    with capture_logs() as records:
        here.later(HOUR)
        here.later(MINUTE)
    assert any(record["event"] == "sink answers again" for record in records)
    assert sum(seen.json["metadata"].get("events", 1) for seen in receiver.seen) == 5
    assert here.states["pending"] == 0


def test_two_deployments_with_different_sinks_deliver_for_each_other(
    harness: Open, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = harness(**hook(receiver))
    monkeypatch.delenv("SB_NOTIFICATION_WEBHOOK_URL")
    other = harness()
    one.tell(event())
    (delivery,) = one.queue
    with pytest.raises(RetryLater):  # a message that was meant for one comes back to the queue
        other.notifier.deliver(delivery)
    one.queue.clear()
    other.later(20 * SECOND)  # the relay that has the lock triggers for both
    assert list(other.again) == [delivery]
    one.queue.append(delivery)
    one.work()
    assert one.states == {"delivered": 1}


def test_what_nobody_is_configured_for_does_not_fill_the_queue(
    harness: Open, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = harness(**hook(receiver))
    one.tell(*(event(number) for number in range(50)))
    monkeypatch.delenv("SB_NOTIFICATION_WEBHOOK_URL")
    other = harness()
    other.later(HOUR)
    assert other.again == {}
    recent = "SELECT count(*) FROM secrets_bridge_worker.notification_delivery WHERE nudged_at > now() - interval '1m'"
    with other.pool.connection() as connection:
        assert column(connection, recent)[0] <= 10


def test_the_last_word_on_an_incident_is_not_held(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), SB_NOTIFICATION_PACE="0s")
    told = []
    for one in (failed(), recovered(), failed(), recovered(), failed()):
        here.tell(one)
        here.work().later(10 * SECOND)
        told.append(receiver.seen[-1].json["title"])
    assert told == [one.title for one in (failed(), recovered(), failed(), recovered(), failed())]


def test_a_failure_that_was_held_is_not_told_after_its_recovery(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), SB_NOTIFICATION_PACE="0s")
    for one in (failed(), failed(), recovered()):
        here.tell(one)
        here.work()
    here.later(10 * MINUTE)
    assert [seen.json["title"] for seen in receiver.seen] == [failed().title, recovered().title]
    assert receiver.seen[-1].json["metadata"] == {"events": 2}
