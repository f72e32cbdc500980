"""What was claimed and not begun is given back, with all that the claim has used up of its receiver for it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from typing import Any

import pytest
from psycopg import Connection

from app.core.errors import Fault, SinkRejected, SinkUnavailable
from app.notify.policy import MOST_AT_ONCE
from tests.notify.test_deliveries import HOUR, MINUTE, OPEN_GATES, SECOND, event, failed, hook, recovered
from tests.support.http_server import Receiver, Reply
from tests.support.notifier_harness import Open
from tests.support.rows import column

NO_PACE = {"SB_NOTIFICATION_PACE": "0s"}
NO_WINDOWS = {"SB_NOTIFICATION_REPEAT_INTERVAL": "0s"}
RETRIES_429 = {"SB_NOTIFICATION_WEBHOOK_RETRY_STATUSES": "429"}
TARGET = "secrets_bridge_worker.notification_target"
HOLD = "secrets_bridge_worker.notification_hold"
DELIVERY = "secrets_bridge_worker.notification_delivery"


def told_after(answers: int) -> Callable[[], bool]:
    """Return a process's `stopping` that is told to end after it was asked so often."""
    answer = chain(repeat(False, answers), repeat(True))
    return lambda: next(answer)


def test_who_is_told_to_end_after_the_claim_begins_nothing_and_holds_nothing(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), SB_NOTIFICATION_PACE="10m", SB_NOTIFICATION_BURST="1")
    here.tell(failed())
    here.notifier.stopping = told_after(1)
    here.work()
    assert receiver.seen == []
    assert {row["attempts"] for row in here.rows} == {0}
    here.notifier.stopping = lambda: False
    here.later(11 * SECOND)
    assert here.states == {"delivered": 1}
    here.tell(failed())
    here.work()
    assert here.states == {"delivered": 1, "pending": 1}  # by then it is used up


def test_who_is_told_to_end_claims_nothing(harness: Open, receiver: Receiver, sql: Connection[Any]) -> None:
    here = harness(**hook(receiver))
    here.tell(failed())
    here.notifier.stopping = lambda: True
    here.work()
    assert set(here.again) == {row["id"] for row in here.rows}  # the message is another process's
    assert column(sql, f"SELECT name FROM {TARGET}") == []


def test_a_sibling_that_was_asked_to_wait_holds_nothing(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), **NO_PACE, **RETRIES_429)
    receiver.answer = Reply(500)
    here.tell(event(1, component="agents-stale"))
    here.work()
    with here.pool.connection() as connection:
        connection.execute(f"UPDATE {DELIVERY} SET due_at = now()".encode())
    receiver.seen.clear()
    receiver.answer = Reply(429, headers={"Retry-After": "5"})
    here.tell(failed())
    here.work()
    assert len(receiver.seen) == 1
    receiver.answer = Reply(200)
    here.later(12 * SECOND)
    assert here.states == {"delivered": 2}


def test_windows_are_as_they_were(harness: Open, receiver: Receiver, sql: Connection[Any]) -> None:
    here = harness(**hook(receiver), **NO_PACE)
    windows = f"SELECT key || ' ' || until FROM {HOLD} ORDER BY key"
    here.tell(failed())
    here.work()
    before = column(sql, windows)
    here.tell(recovered())
    batch = here.claim(here.queue[0])
    assert batch is not None
    assert column(sql, windows) != before  # the recovery has ended that of its failure
    here.give_back(batch)
    assert column(sql, windows) == before


def test_what_another_one_was_sent_meanwhile_keeps_its_window(
    harness: Open, receiver: Receiver, sql: Connection[Any]
) -> None:
    here = harness(**hook(receiver), **NO_PACE)
    here.tell(failed())
    batch = here.claim(here.queue.popleft())
    assert batch is not None
    sql.execute(f"UPDATE {HOLD} SET until = until + interval '1 second'".encode())
    here.give_back(batch)
    assert len(column(sql, f"SELECT key FROM {HOLD}")) == 1


def test_what_was_taken_over_gives_nothing_back(harness: Open, receiver: Receiver, sql: Connection[Any]) -> None:
    here = harness(**hook(receiver))
    here.tell(failed())
    batch = here.claim(here.queue.popleft())
    assert batch is not None
    here.later(here.notifier.settings.lease + SECOND)
    assert here.states == {"delivered": 1}
    used = f"SELECT paced_until FROM {TARGET}"
    before = column(sql, used)
    here.give_back(batch)
    assert column(sql, used) == before
    assert len(column(sql, f"SELECT key FROM {HOLD}")) == 1


def test_pace_is_given_back_for_each_that_was_not_sent(harness: Open, receiver: Receiver) -> None:
    gates = {**OPEN_GATES, "SB_NOTIFICATION_PACE": "10m", "SB_NOTIFICATION_BURST": "7"}
    here = harness(**hook(receiver), **gates)
    here.tell(*(event(number) for number in range(7)))
    batch = here.claim(here.queue.popleft())
    assert batch is not None
    assert len(batch.deliveries) == 7
    here.give_back(batch)
    here.queue.append(batch.deliveries[0].id)
    here.work()
    assert here.states == {"delivered": 7}


def test_a_probe_of_one_that_is_off_is_not_used_up(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(event(1), event(2))
    batch = here.claim(here.queue.popleft())
    assert batch is not None
    here.settle(batch, SinkRejected(Fault.AUTH, "401", off=True))
    here.notifier.stopping = told_after(1)
    here.later(11 * MINUTE)
    assert receiver.seen == []
    here.notifier.stopping = lambda: False
    here.later(MINUTE)
    assert here.states == {"dead auth": 1, "delivered": 1}


def test_a_probe_of_one_that_fails_is_not_used_up(harness: Open, receiver: Receiver) -> None:
    here = harness(**hook(receiver), **OPEN_GATES)
    here.tell(*(event(number) for number in range(6)))
    batch = here.claim(here.queue.popleft())
    assert batch is not None
    here.settle(batch, SinkUnavailable(Fault.TIMEOUT))
    here.notifier.stopping = told_after(1)
    here.later(HOUR)
    assert receiver.seen == []
    here.notifier.stopping = lambda: False
    here.queue.extend(row["id"] for row in here.rows[:1])
    here.work()
    assert len(receiver.seen) == 6


def test_what_piled_up_is_still_one_digest(harness: Open, receiver: Receiver, sql: Connection[Any]) -> None:
    here = harness(**hook(receiver), **NO_PACE, **NO_WINDOWS)
    here.tell(event(1))
    sql.execute(f"INSERT INTO {TARGET} (name, catch_up) VALUES ('webhook', true)".encode())
    batch = here.claim(here.queue.popleft())
    assert batch is not None
    here.give_back(batch)
    here.tell(event(2))
    here.work()
    assert [seen.json["metadata"]["events"] for seen in receiver.seen] == [2]


def test_a_digest_that_was_not_sent_uses_up_what_it_did(harness: Open, receiver: Receiver) -> None:
    """It is made, and goes out as it is; an equal event after it is held."""
    here = harness(**hook(receiver), **NO_PACE)
    here.tell(*(event(number) for number in range(5)))
    batch = here.claim(here.queue.popleft())
    assert batch is not None
    here.give_back(batch)
    here.queue.append(batch.deliveries[0].id)
    here.work()
    here.tell(event(6))
    here.work()
    assert here.states == {"digested": 5, "delivered": 1, "pending": 1}


@pytest.mark.parametrize("gates", [NO_PACE, OPEN_GATES])
def test_many_that_have_failed_hold_up_no_new_one(
    harness: Open, receiver: Receiver, sql: Connection[Any], gates: dict[str, str]
) -> None:
    here = harness(**hook(receiver), **gates)
    here.tell(*(event(number, component="agents-stale") for number in range(MOST_AT_ONCE)))
    sql.execute(f"UPDATE {DELIVERY} SET attempts = 1, reason = 'timeout'".encode())
    here.tell(failed())
    batch = here.claim(here.queue[0])
    assert batch is not None
    assert len(batch.deliveries) == MOST_AT_ONCE
    assert batch.deliveries[-1].fresh
    here.settle(batch, None)
    here.later(11 * SECOND)
    assert here.states == {"delivered": MOST_AT_ONCE + 1}
