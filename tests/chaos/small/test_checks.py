"""Each check finds what it is there for, by its name alone, and a round in which nothing is wrong is clean."""

from __future__ import annotations

import dataclasses

import pytest

from actors import SWEEPERS
from tests.chaos import checks
from tests.chaos.checks import counts, due
from tests.chaos.checks.gaps import worst_recovery
from tests.chaos.checks.notifications import identity
from tests.chaos.checks.transactions import SWEPT
from tests.chaos.fault_log import Fault
from tests.chaos.history import History, Received
from tests.chaos.small.book import BEGAN, POLLER, SECOND, WRAPS, Book, small
from tests.chaos.small.edits import Mutation
from tests.chaos.small.mutations import LATE, MUTATIONS
from tests.chaos.small.wrong_locks import holding, released


def _name(mutation: Mutation) -> str:
    return mutation.__name__.replace("_", " ")


def test_a_round_in_which_nothing_is_wrong_is_clean() -> None:
    assert checks.run(small().history(), timed=True) == []


@pytest.mark.parametrize(
    ("check", "mutation"), MUTATIONS, ids=[f"{check}: {_name(mutation)}" for check, mutation in MUTATIONS]
)
def test_what_is_wrong_is_found_by_the_check_that_is_meant_for_it_alone(check: str, mutation: Mutation) -> None:
    found = {violation.check for violation in checks.run(mutation(small()), timed=True)}

    assert found == {check}


def test_every_check_is_shown_to_find_something() -> None:
    assert {check for check, _ in MUTATIONS} == {*checks.CHECKS, *checks.TIMED}


def test_a_sweeper_that_never_runs_is_found_in_the_densest_round() -> None:
    history = small().history()
    dense = [Fault("stop", at / 2, outage=True, ended=at / 2 + 0.4) for at in range(20)]
    cadences = {**history.cadences, "agents-stale": (SECOND,)}
    found = checks.run(dataclasses.replace(history, cadences=cadences, faults=dense), timed=True)

    assert [violation.check for violation in found] == ["standstill"]


def test_rules_are_there_for_every_sweeper() -> None:
    names = {sweeper.name for sweeper in SWEEPERS}
    assert {rule.sweeper for rule in due.RULES.values()} | {name for _, name in due.OTHERS} == names
    assert counts.ROWS.keys() | counts.MORE.keys() == names
    assert due.RULES.keys() == SWEPT


def test_a_repeat_beside_a_fault_is_no_violation() -> None:
    book = small()
    told = [received for received in book.received if received.target == "webhook"][1]
    book.received.append(told._replace(at=9.0))
    for delivery in book.deliveries:
        delivery["attempts"] = 2
    history = dataclasses.replace(book.history(), faults=[Fault("kill", 3.5, outage=False, ended=3.6)])

    assert checks.run(history) == []


def test_a_repeat_after_an_answer_that_came_too_late_is_no_violation() -> None:
    book = small()
    event = book.events[-1]["id"]
    delivery = next(row for row in book.deliveries if row["event_id"] == event and row["target"] == "webhook")
    delivery["attempts"] = 2
    book.transaction(9.0)
    late = {**delivery, "state": "pending", "reason": "timeout"}
    book.note("notification_delivery", "update", {**late, "state": "sending", "reason": ""}, late, "notifier0")
    told = next(received for received in book.received if received.id == event)
    book.received.append(told._replace(at=9.5))

    assert checks.run(book.history()) == []


def test_slots_that_a_clock_ahead_had_run_are_run_again_when_their_time_has_come() -> None:
    book = small()
    ahead = 3600
    book.transaction(ahead + 0.5)
    book.claim(6, WRAPS, ahead, covered=ahead - 6)
    book.step(6, 0, "success")
    book.transaction(8.1)  # and the clock is right again
    book.claim(7, WRAPS, 8)
    book.run(6, outcome="interrupted")
    book.step(7, 0, "success")

    assert checks.run(dataclasses.replace(book.history(), commits={})) == []


@pytest.mark.parametrize(("slot", "covered"), [(9, 1), (609, 601)])
@pytest.mark.parametrize(("more", "found"), [(0, set()), (1, {"slots"}), (-1, {"slots"})])
def test_a_run_covers_all_since_a_clock_was_set_back_to_before_all_runs(
    slot: int, covered: int, more: int, found: set[str]
) -> None:
    book = Book()
    book.transaction(3600.5)
    book.claim(1, WRAPS, 3600)
    book.step(1, 0, "success")
    book.transaction(8.1)
    book.claim(2, WRAPS, 8)
    book.run(1, outcome="interrupted")
    book.transaction(8.3)
    book.run(2, outcome="failure")
    book.state(WRAPS, last_slot=(BEGAN + 7 * SECOND).isoformat())
    book.transaction(slot + 0.1)
    book.claim(3, WRAPS, slot, covered + more)
    book.step(3, 0, "success")

    assert {violation.check for violation in checks.run(dataclasses.replace(book.history(), commits={}))} == found


def test_a_run_by_hand_serves_the_slot_that_it_lies_in() -> None:
    book = small()
    book.transaction(7.5)
    book.claim(6, WRAPS, 7, covered=1)
    moment = (BEGAN + 7.5 * SECOND).isoformat()
    book.runs[6] |= {"slot": moment, "requested_by": "somebody"}
    book.changes[-1] = book.changes[-1]._replace(after=dict(book.runs[6]))
    book.changes[-2] = book.changes[-2]._replace(after={**book.changes[-2].after, "last_slot": moment})
    book.step(6, 0, "success")
    book.transaction(8.1)
    book.claim(7, WRAPS, 8)
    book.step(7, 0, "success")

    assert checks.run(book.history()) == []


def of_a_slower_process(slot: int, covered: int) -> History:
    """A process of 2 s claims a slot, twelve seconds after the last of a process of 1 s."""
    book = small()
    book.transaction(17.1)
    book.claim(6, WRAPS, slot, covered=covered)
    book.changes[-2:] = [change._replace(cadence=2 * SECOND) for change in book.changes[-2:]]
    book.step(6, 0, "success")
    return dataclasses.replace(book.history(), cadences={WRAPS: (SECOND, 2 * SECOND), POLLER: (SECOND,)})


def test_a_run_counts_slots_by_the_cadence_of_its_process() -> None:
    between = [6, 8, 10, 12, 14]  # after slot 5
    assert checks.run(of_a_slower_process(16, covered=len(between))) == []
    for slot, wrong in ((16, len(between) - 1), (16, len(between) + 1), (16, 16 - 5 - 1), (17, len(between))):
        assert {found.check for found in checks.run(of_a_slower_process(slot, covered=wrong))} == {"slots"}


def test_a_lock_of_which_the_beginning_was_not_seen_is_not_judged() -> None:
    book = small()
    holding(book, WRAPS, "fourth", "fifth")
    released(4.2)(book)
    book.locks = [step._replace(segment=1 if step.at < BEGAN + 4.1 * SECOND else 2) for step in book.locks]

    assert checks.run(book.history()) == []


def test_runs_under_a_lock_are_not_counted_while_one_may_go_on_that_was_robbed_of_it() -> None:
    book = small()
    book.lock(WRAPS, "robbed", 3.9)

    assert checks.run(holding(book, WRAPS, "fourth", "fifth")) == []


@pytest.mark.parametrize("lock", ["first", "third", "before"])
def test_a_lock_that_is_taken_once_more_by_its_holder_is_released_once(lock: str) -> None:
    book = small()
    taken = next(step for step in book.locks if (step.name, step.what, step.token) == (WRAPS, "taken", lock))
    book.locks.insert(book.locks.index(taken), taken)

    assert checks.run(book.history()) == []


def test_the_longest_recovery_begins_with_the_end_of_the_fault() -> None:
    history = dataclasses.replace(
        small().history(), successes=LATE, faults=[Fault("redis", 2.5, outage=True, ended=6.5)]
    )

    assert worst_recovery(history)[:2] == (2.5, WRAPS)
    assert checks.run(history, timed=True) == []


def test_slack_says_which_event_it_is_in_the_last_word_of_its_context() -> None:
    book = small()
    slack = [received for received in book.received if received.target == "slack"]

    assert [identity(received) for received in slack] == [event["id"] for event in book.events]
    assert not identity(Received(0.0, "slack", "", {"text": "something else"}))
