"""Deliveries in batches: claimed together, sent side by side, settled together, and one hurts no other."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from psycopg import Connection, OperationalError
from psycopg.rows import dict_row
from pydantic import SecretStr
from structlog.testing import capture_logs

from app.core.errors import Fault, SinkRejected, SinkUnavailable
from app.core.events import Event, Kind, Severity
from app.notify import dead_letters, notifier
from app.notify.delivery import send
from app.notify.delivery.batch import ClaimedDelivery
from app.notify.delivery.send import SIDE_BY_SIDE, send_side_by_side
from app.notify.delivery.settle import settle
from app.notify.policy import BREAKER_FAILURES, MOST_AT_ONCE
from app.notify.routing import targets
from app.notify.settings import NotificationSettings
from app.notify.transport import NetworkTransport
from sinks import SINKS
from tests.notify.test_deliveries import HOUR, MINUTE, OPEN_GATES, SECOND, event, failed, hook, recovered
from tests.sinks.test_answers import KEY
from tests.support.http_server import Receiver, Reply, Seen
from tests.support.notifier_harness import NotifierHarness, Open
from tests.support.outcome import LOOPBACK
from tests.support.rows import column
from tests.support.waiting import HUNG, LoopClock, eventually

DELIVERY = "secrets_bridge_worker.notification_delivery"
#: Notes each statement that updates deliveries, with how many rows it left in which state.
NOTE_STATEMENTS = f"""
CREATE TABLE statement (id bigint GENERATED ALWAYS AS IDENTITY, state text, number bigint);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO statement (state, number) SELECT state, count(*) FROM updated GROUP BY state; RETURN NULL; END $$;
CREATE TRIGGER note AFTER UPDATE ON {DELIVERY} REFERENCING NEW TABLE AS updated
   FOR EACH STATEMENT EXECUTE FUNCTION note();
GRANT INSERT ON statement TO PUBLIC;
"""


def number_of(seen: Seen) -> int:
    number: int = seen.json["metadata"]["deleted"]
    return number


def ids(harness: NotifierHarness) -> list[int]:
    return [row["id"] for row in harness.rows]


def test_one_message_one_claim_and_one_settlement_serve_many(
    harness: Open, receiver: Receiver, sql: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "PATIENCE", HUNG)
    here = harness(**hook(receiver), **OPEN_GATES)
    sql.execute(NOTE_STATEMENTS.encode())
    here.tell(*(event(number) for number in range(MOST_AT_ONCE)))
    assert len(here.queue) == 1
    here.work()
    assert here.states == {"delivered": MOST_AT_ONCE}
    statements = sql.execute("SELECT state, number FROM statement ORDER BY id").fetchall()
    assert statements == [("sending", MOST_AT_ONCE), ("delivered", MOST_AT_ONCE)]


def test_what_is_more_than_a_batch_follows(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(*(event(number) for number in range(2 * MOST_AT_ONCE + 50)))
    here.work()
    assert here.states == {"delivered": 2 * MOST_AT_ONCE + 50}
    assert len({seen.headers["webhook-id"] for seen in receiver.seen}) == len(receiver.seen)


def test_a_message_for_each_delivery_as_an_older_release_sends_them_is_fine(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(*(event(number) for number in range(20)))
    here.queue.clear()
    here.queue.extend(reversed(ids(here)))
    here.work()
    assert here.states == {"delivered": 20}
    assert len(receiver.seen) == 20


def test_two_batches_have_nothing_in_common(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(*(event(number) for number in range(MOST_AT_ONCE + 50)))
    first = here.claim(here.queue[0])
    second = here.claim(ids(here)[-1])
    assert first is not None
    assert second is not None
    assert first.more
    assert not second.more
    assert [one.id for one in (*first.deliveries, *second.deliveries)] == ids(here)


def test_each_of_a_batch_ends_in_its_own_way(
    harness: Open, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, clock = threading.Event(), LoopClock(monkeypatch)

    def answer(seen: Seen) -> Reply:
        if number_of(seen) == 3:
            release.wait(HUNG)
        return {1: Reply(500), 2: Reply(400)}.get(number_of(seen), Reply(200))

    receiver.answer = answer
    here = harness(**hook(receiver), **OPEN_GATES, SB_NOTIFICATION_TIMEOUT="1h")
    here.tell(*(event(number) for number in range(10)))

    def let_the_last_one_time_out() -> None:
        eventually(lambda: here.states["sending"] == 1 and here.states["pending"] == 0)
        clock.pass_by(2 * HOUR.total_seconds())

    with ThreadPoolExecutor(1) as beside:
        waiting = beside.submit(let_the_last_one_time_out)
        here.work()
        waiting.result(HUNG)
    release.set()
    assert here.states == {"delivered": 7, "pending server_error": 1, "dead client_error": 1, "pending timeout": 1}
    assert list(here.again) == [row["id"] for row in here.rows if row["state"] == "pending"]
    here.later(HOUR)  # one that was tried before keeps its id, whatever it is sent with
    receiver.answer = Reply(200)
    here.later(HOUR)
    assert here.states == {"delivered": 9, "dead client_error": 1}
    arrived = Counter(seen.headers["webhook-id"] for seen in receiver.seen)
    assert len(arrived) == 10
    assert all(arrived[seen.headers["webhook-id"]] == 1 for seen in receiver.seen if number_of(seen) in (0, 2, 4, 9))


def test_one_that_hangs_keeps_no_other_from_its_end(harness: Open, receiver: Receiver) -> None:
    release = threading.Event()

    def answer(seen: Seen) -> Reply:
        if number_of(seen) == 0:
            release.wait(HUNG)
        return Reply(200)

    receiver.answer = answer
    here = harness(**hook(receiver), **OPEN_GATES, SB_NOTIFICATION_TIMEOUT="1h")
    here.tell(*(event(number) for number in range(MOST_AT_ONCE + 20)))

    def work() -> None:
        with here:  # which closes this thread's connections
            here.work()

    working = threading.Thread(target=work)
    working.start()
    try:  # the first of all hangs; what is behind the batch is triggered as soon as the rest of the batch is settled
        settled = {"delivered": MOST_AT_ONCE - 1, "sending": 1, "pending": 20}
        eventually(lambda: here.states == settled and len(here.queue) == 1)
    finally:
        release.set()
        working.join(HUNG)
    assert here.states == {"delivered": MOST_AT_ONCE + 20}


def test_a_breaker_that_opens_gives_the_rest_back_as_it_was(harness: Open, receiver: Receiver) -> None:
    receiver.answer = Reply(500)
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(*(event(number) for number in range(50)))
    here.work()
    assert here.states == {"pending server_error": BREAKER_FAILURES, "pending": 50 - BREAKER_FAILURES}
    assert [row["attempts"] for row in here.rows] == [1] * BREAKER_FAILURES + [0] * (50 - BREAKER_FAILURES)
    assert len(here.again) == BREAKER_FAILURES


def test_a_breaker_that_opens_in_the_middle_stops_what_is_not_sent(harness: Open, receiver: Receiver) -> None:
    receiver.answer = lambda seen: Reply(200 if number_of(seen) < 20 else 503)
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(*(event(number) for number in range(90)))
    here.work()
    assert here.states["delivered"] == 20
    asked = here.states["pending server_error"]
    # Each of those side by side may have come late, and had the failures before it forgotten.
    assert BREAKER_FAILURES <= asked <= SIDE_BY_SIDE * BREAKER_FAILURES
    assert here.states["pending"] == 70 - asked
    receiver.answer = Reply(200)
    here.later(HOUR)
    here.later(MINUTE)
    assert here.states == {"delivered": 90}


def test_a_rate_limit_in_the_middle_stops_what_is_not_sent(harness: Open, receiver: Receiver) -> None:
    receiver.answer = lambda seen: Reply(200 if number_of(seen) < 20 else 429, headers={"Retry-After": "400"})
    here = harness(**hook(receiver), **OPEN_GATES, SB_NOTIFICATION_WEBHOOK_RETRY_STATUSES="429")
    here.tell(*(event(number) for number in range(90)))
    here.work()
    limited = here.states["pending rate_limited"]
    assert 1 <= limited < 20
    assert {row["attempts"] for row in here.rows if row["state"] == "pending" and not row["reason"]} == {0}
    here.later(5 * MINUTE)
    assert len(receiver.seen) == 20 + limited  # it is left alone for as long as it has asked for


def test_credentials_that_end_in_the_middle_cost_one_delivery(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(*(event(number) for number in range(4)))
    batch = here.claim(here.queue[0])
    assert batch is not None
    refused = SinkRejected(Fault.AUTH, "401", off=True)
    here.settle(batch, None, refused, refused, refused)
    assert here.states == {"delivered": 1, "dead auth": 1, "pending auth": 2}
    with here.pool.connection() as connection:
        off = "SELECT off_fingerprint IS NOT NULL AND off_until > now() FROM secrets_bridge_worker.notification_target"
        assert column(connection, off) == [True]


def test_turns_of_one_incident_are_never_side_by_side(harness: Open, receiver: Receiver) -> None:
    here = harness(SB_NOTIFICATION_PAGERDUTY_ROUTING_KEY=KEY, SB_NOTIFICATION_PAGERDUTY_URL=receiver.url, **OPEN_GATES)
    names = ("wraps-expired", "agents-stale", "secrets-stale")
    here.tell(*(turn(name) for turn in (failed, recovered, failed) for name in names))
    first = here.claim(here.queue[0])
    assert first is not None
    assert [one.notification.event.kind for one in first.deliveries] == [Kind.FAILED] * 3
    here.settle(first, None)
    here.queue.clear()
    here.queue.extend(ids(here))
    here.work()
    told = [(seen.json["dedup_key"].rpartition("/")[2], seen.json["event_action"]) for seen in receiver.seen]
    for name in names:
        assert [action for one, action in told if one == name] == ["resolve", "trigger"]


def test_a_pace_without_digests_lets_a_burst_out_at_once(harness: Open, receiver: Receiver) -> None:
    gates = {**OPEN_GATES, "SB_NOTIFICATION_PACE": "10m", "SB_NOTIFICATION_BURST": "7"}
    here = harness(**hook(receiver), **gates)
    here.tell(*(event(number) for number in range(20)))
    here.work()
    assert here.states == {"delivered": 7, "pending": 13}
    here.later(11 * MINUTE)
    assert here.states == {"delivered": 8, "pending": 12}


def test_what_was_tried_goes_side_by_side_with_a_digest_of_the_rest(harness: Open, receiver: Receiver) -> None:
    receiver.answer = Reply(503)
    here = harness(**hook(receiver), SB_NOTIFICATION_REPEAT_INTERVAL="0s", SB_NOTIFICATION_PACE="0s")
    here.tell(event(1), event(2))
    here.work()
    assert here.states == {"pending server_error": 2}
    receiver.answer = Reply(200)
    receiver.seen.clear()
    here.tell(*(event(number) for number in range(3, 13)))
    here.queue.clear()
    here.later(HOUR)
    told = sorted((seen.json["metadata"].get("events", 1), number_of(seen)) for seen in receiver.seen)
    assert told == [(1, 1), (1, 2), (10, sum(range(3, 13)))]


def test_nothing_is_begun_so_late_that_the_lease_could_end_first(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(*(event(number) for number in range(3)))
    batch = here.claim(here.queue[0])
    assert batch is not None

    async def too_late() -> list[ClaimedDelivery]:
        network = NetworkTransport(here.notifier.settings)
        ended, unsent = await send_side_by_side(
            batch, network, seconds=HUNG, may_begin=lambda: False, settle=lambda *_: None
        )
        await network.close()
        assert ended == []
        return unsent

    unsent = asyncio.run(too_late())
    assert receiver.seen == []
    with here.pool.connection() as connection:
        settlement = settle(
            connection, batch, (), unsent, more=False, settings=here.notifier.settings, outbox=here.outbox
        )
    assert here.states == {"pending": 3}
    assert {row["attempts"] for row in here.rows} == {0}
    assert settlement.follow == batch.deliveries[0].id


def test_what_is_not_begun_is_given_back_while_one_hangs(harness: Open, receiver: Receiver) -> None:
    release = threading.Event()

    def answer(_seen: Seen) -> Reply:
        release.wait(HUNG)
        return Reply(200)

    receiver.answer = answer
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(*(event(number) for number in range(6)))
    batch = here.claim(here.queue[0])
    assert batch is not None
    given_back: list[int] = []

    def settled(_ended: object, unsent: Sequence[ClaimedDelivery], all_begun: bool) -> None:
        given_back.extend(delivery.id for delivery in unsent)
        assert all_begun
        release.set()

    async def until_two_hang() -> int:
        network = NetworkTransport(here.notifier.settings)
        ended, unsent = await send_side_by_side(
            batch, network, seconds=HUNG, may_begin=lambda: len(receiver.seen) < 2, settle=settled
        )
        await network.close()
        assert unsent == []
        return len(ended)

    sent = asyncio.run(until_two_hang())
    assert 2 <= sent < 6
    assert given_back == [delivery.id for delivery in batch.deliveries[sent:]]


def test_a_lease_outlasts_the_last_attempt_of_its_batch() -> None:
    settings = NotificationSettings.read()
    assert settings.lease >= settings.begin_within + settings.timeout + 4 * SECOND


def test_what_another_process_has_taken_over_says_nothing_about_the_receiver(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(*(event(number) for number in range(8)))
    batch = here.claim(here.queue[0])
    assert batch is not None
    here.queue.clear()
    here.later(here.notifier.settings.lease + SECOND)
    assert here.states == {"delivered": 8}
    settlement = here.settle(batch, SinkUnavailable(Fault.TIMEOUT))
    assert settlement.outcomes == ()
    with here.pool.connection() as connection:
        assert column(connection, "SELECT failures FROM secrets_bridge_worker.notification_target") == [0]


def with_log(here: NotifierHarness) -> NotifierHarness:
    """Return a harness for the same receivers and the log."""
    log = [target for target in targets(SINKS, [sink.settings.read() for sink in SINKS]) if target.name == "noop"]
    return NotifierHarness(here.pool, [*here.notifier.targets.values(), *log])


def test_the_log_is_a_line_at_the_commit_and_no_message(harness: Open, receiver: Receiver) -> None:
    with with_log(harness(**hook(receiver), **OPEN_GATES)) as here:
        with capture_logs() as records:
            here.tell(event(1), event(2))
        assert len(here.queue) == 1  # the webhook's
        assert here.states == {"pending": 2, "delivered": 2}
        lines = [record for record in records if record["event"] == "notification"]
        assert [(line["deleted"], line["log_level"]) for line in lines] == [(1, "warning"), (2, "warning")]
        with capture_logs() as records:
            here.work().later(HOUR)
        assert [record for record in records if record["event"] == "notification"] == []
        assert {line["event_id"] for line in lines} == {seen.headers["webhook-id"] for seen in receiver.seen}
        with here.pool.connection() as connection:
            sums = {(row["target"], row["state"]): row["number"] for row in dead_letters.sums(connection)}
        assert sums == {("noop", "delivered"): 2, ("webhook", "delivered"): 2}


def test_the_log_has_no_line_of_what_is_not_committed_or_not_wanted(
    harness: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SB_NOTIFICATION_NOOP_MIN_SEVERITY", "error")
    with with_log(harness()) as here, capture_logs() as records:
        with here.pool.connection() as connection, connection.transaction(force_rollback=True):
            here.outbox.write(connection.cursor(row_factory=dict_row), [failed()])
        here.tell(event(1))
        here.work().later(HOUR)
        assert here.states == {"suppressed severity": 1}
    assert [record for record in records if record["event"] == "notification"] == []


def test_what_an_older_release_has_queued_for_the_log_is_logged(harness: Open, sql: Connection[Any]) -> None:
    with with_log(harness()) as here:
        here.tell(Event("agents-stale", Severity.WARN, "flagged"))
        sql.execute(f"UPDATE {DELIVERY} SET state = 'pending', attempts = 0, finished_at = NULL".encode())
        here.queue.extend(ids(here))
        with capture_logs() as records:
            here.work()
        assert here.states == {"delivered": 1}
        assert [record["title"] for record in records if record["event"] == "notification"] == ["flagged"]


def test_one_that_is_cut_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> None:
    for name, value in LOOPBACK.items():
        monkeypatch.setenv(name, value)
    release = threading.Event()

    def answer(_seen: Seen) -> Reply:
        release.wait(HUNG)
        return Reply(200)

    receiver.answer = answer

    async def both() -> int:
        network = NetworkTransport(NotificationSettings.read())
        cut, kept = (asyncio.ensure_future(network.post(SecretStr(receiver.url), b"{}", {})) for _ in range(2))
        await asyncio.to_thread(eventually, lambda: len(receiver.seen) == 2)
        cut.cancel()
        with suppress(asyncio.CancelledError):
            await cut
        release.set()
        answered = await kept
        await network.close()
        return answered.status

    assert asyncio.run(both()) == 200


def test_a_success_ends_no_rest_that_began_after_it(harness: Open, receiver: Receiver, sql: Connection[Any]) -> None:
    limited = SinkUnavailable(Fault.RATE_LIMITED, "429", retry_after=400)
    for order in ((None, limited, None), (limited, None, None), (None, None, limited)):
        here = harness(**hook(receiver), **OPEN_GATES)
        sql.execute(f"TRUNCATE {DELIVERY}; TRUNCATE secrets_bridge_worker.notification_target".encode())
        here.tell(*(event(number) for number in range(4)))
        batch = here.claim(here.queue.popleft())
        assert batch is not None
        settlement = here.settle(batch._replace(deliveries=batch.deliveries[:3]), *order)
        assert not any(outcome.recovered for _, outcome in settlement.outcomes)
        here.settle(batch._replace(deliveries=batch.deliveries[3:]), None)  # it was under way
        with here.pool.connection() as connection:
            rests = "SELECT rests_until > now() + interval '390 s' FROM secrets_bridge_worker.notification_target"
            assert column(connection, rests) == [True]
            due = f"SELECT due_at > now() + interval '390 s' FROM {DELIVERY} WHERE state = 'pending'"
            assert column(connection, due) == [True]


def test_one_that_was_refused_beside_one_that_was_not_is_not_told_as_switched_off(
    harness: Open, receiver: Receiver
) -> None:
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(*(event(number) for number in range(3)))
    batch = here.claim(here.queue[0])
    assert batch is not None
    settlement = here.settle(batch, SinkRejected(Fault.AUTH, "401", off=True), None, None)
    assert [outcome.switched_off for _, outcome in settlement.outcomes] == [False] * 3


@pytest.mark.parametrize("problem", [RuntimeError, OperationalError])
def test_results_that_could_not_be_recorded_come_with_the_next_settlement(
    harness: Open, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, problem: type[Exception]
) -> None:
    failures: list[int] = []
    release = threading.Event()

    def failing(*args: Any, **settings: Any) -> Any:
        if not release.is_set():
            failures.append(len(args[2]))
            if len(failures) == (5 if problem is OperationalError else 1):
                release.set()
            raise problem
        return settle(*args, **settings)

    def answer(seen: Seen) -> Reply:
        if number_of(seen) == 0:
            release.wait(HUNG)
        return Reply(200)

    monkeypatch.setattr(notifier, "settle", failing)
    receiver.answer = answer
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(*(event(number) for number in range(12)))
    here.work()
    assert failures
    assert here.states == {"delivered": 12}
    assert len(receiver.seen) == 12


def test_what_costs_a_process_each_goes_one_after_the_other(harness: Open, receiver: Receiver) -> None:
    under_way, most = [0], [0]
    moment = threading.Event()

    def answer(_seen: Seen) -> Reply:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        moment.wait(1.5)
        under_way[0] -= 1
        return Reply(200)

    receiver.answer = answer
    here = harness(SB_NOTIFICATION_APPRISE_URLS=receiver.url.replace("http://", "json://"), **OPEN_GATES)
    here.tell(*(event(number) for number in range(3)))
    here.work()
    assert here.states == {"delivered": 3}
    assert most == [1]
