"""What is sent next, decided without a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app.core.events import Event, Kind, Severity, Tally
from app.notify.digest import digest
from app.notify.policy import Decision, Health, Policy, Waiting, backoff, cooldown, decide

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WELL = Health(0, 0, None, None, False, EPOCH)
BROKEN = Health(5, 1, NOW - SECOND, None, True, EPOCH)
FREE = Policy(timedelta(0), timedelta(0), 1, 3, False)
PACED = Policy(timedelta(0), 15 * SECOND, 5, 3, False)


def waiting(  # noqa: PLR0913 - all that waits has
    number: int,
    *,
    attempts: int = 0,
    due: bool = True,
    busy: bool = False,
    group: str = "",
    component: str = "wraps-expired",
) -> Waiting:
    event = Event(component, Severity.INFO, f"title {number}")
    return Waiting((number,), event, attempts > 0, due, busy, group)


def sent(decision: Decision) -> list[int]:
    return sorted((*decision.alone, *decision.digest))


def choose(asked: int, *ones: Waiting, health: Health = WELL, policy: Policy = FREE) -> list[int]:
    return sent(decide(asked, ones, health, policy, {}, NOW))


def test_few_go_by_themselves_and_many_together() -> None:
    assert choose(2, waiting(1), waiting(2), waiting(3)) == [2]
    assert choose(2, waiting(1), waiting(2), waiting(3), waiting(4)) == [1, 2, 3, 4]


def test_what_was_tried_never_goes_together() -> None:
    tried = waiting(1, attempts=1)
    many = [waiting(number) for number in range(2, 9)]
    for triggered in (1, 3):
        decision = decide(triggered, [tried, *many], WELL, FREE, {}, NOW)
        assert (decision.alone, decision.digest) == ((1,), [2, 3, 4, 5, 6, 7, 8])


def test_a_probe_is_what_was_tried_before() -> None:
    assert choose(2, waiting(1, attempts=4), waiting(2), health=BROKEN) == [1]
    assert choose(2, waiting(1), waiting(2), health=BROKEN) == [1, 2]


def test_after_an_outage_even_two_go_together() -> None:
    assert choose(1, waiting(1), waiting(2), health=WELL._replace(catch_up=True)) == [1, 2]


def test_what_goes_by_the_component_shares_a_digest_with_its_own_only() -> None:
    unmixed = FREE._replace(mixed=False)
    few = [waiting(1, component="a"), waiting(2, component="b"), waiting(3, component="c"), waiting(4, component="d")]
    assert choose(3, *few) == [1, 2, 3, 4]
    assert choose(3, *few, policy=unmixed) == [3]
    several = [waiting(5, component="b"), *few]
    assert choose(5, *several, policy=unmixed) == [2, 5]
    many = [waiting(number, component="ab"[number % 2]) for number in range(1, 11)]
    assert choose(2, *many, policy=unmixed) == [2, 4, 6, 8, 10]
    assert choose(5, *many, policy=unmixed) == [1, 3, 5, 7, 9]
    assert choose(5, *many, health=BROKEN, policy=unmixed) == [1, 3, 5, 7, 9]


def test_components_take_turns_when_the_pace_holds() -> None:
    """Else the one that has the most to say would always be the one that triggers."""
    unmixed = PACED._replace(mixed=False)
    old, loud = waiting(1, component="a"), [waiting(number, component="b") for number in range(2, 8)]
    burst = WELL._replace(paced_until=NOW)
    assert choose(7, old, *loud, health=burst, policy=unmixed) == [2, 3, 4, 5, 6, 7]
    last_of_burst = WELL._replace(paced_until=NOW + 4 * 15 * SECOND)
    assert choose(7, old, *loud, health=last_of_burst, policy=unmixed) == [1]


def test_nothing_is_sent_while_it_rests_or_is_probed() -> None:
    assert WELL._replace(rests_until=NOW + SECOND).closed_to_all(NOW)
    assert BROKEN._replace(probe_until=NOW + SECOND).closed_to_all(NOW)
    assert not BROKEN.closed_to_all(NOW)
    assert not WELL._replace(probe_until=NOW + SECOND).closed_to_all(NOW)


def test_a_burst_and_then_one_a_pace() -> None:
    health, count, now = WELL, 0, NOW
    while now < NOW + MINUTE:
        decision = decide(1, [waiting(1)], health, PACED, {}, now)
        if sent(decision):
            assert decision.paced_until is not None
            health, count = health._replace(paced_until=decision.paced_until), count + 1
        else:
            ((until, ids),) = decision.postpone.items()
            assert ids == [1]
            assert until > now
        now += SECOND
    assert count == 5 + 3


def test_equal_ones_are_held_and_others_are_not() -> None:
    windows = {waiting(1).key: NOW + MINUTE}
    decision = decide(1, [waiting(1), waiting(2)], WELL, FREE, windows, NOW)
    assert decision.postpone == {NOW + MINUTE: [1]}
    assert sent(decision) == [2]


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (waiting(1, group="a"), [1]),
        (waiting(1, group="a", attempts=1), [1, 3]),
        (waiting(1, group="a", busy=True, due=False, attempts=1), [3]),
        (waiting(1, group="a", attempts=1, due=False), [3]),
    ],
)
def test_a_group_stays_in_order(first: Waiting, expected: list[int]) -> None:
    grouped = FREE._replace(grouped=True)
    later = [waiting(2, group="a"), waiting(3, group="b")]
    asked = expected[0]
    assert choose(asked, first, *later, policy=grouped) == expected
    assert 2 not in choose(2, first, *later, policy=grouped)


def test_waits_double_up_to_an_hour_with_a_fifth_of_jitter() -> None:
    assert [backoff(attempts, 0.5) / SECOND for attempts in (1, 2, 3, 12)] == [1, 2, 4, 2048]
    assert backoff(1, 0.0) == 0.8 * SECOND
    assert backoff(1, 0.999999) <= 1.2 * SECOND
    assert backoff(1000, 1.0) == 60 * MINUTE


def test_rests_double_up_to_ten_minutes() -> None:
    assert [cooldown(trips, 30 * SECOND) / SECOND for trips in (1, 2, 3, 6, 99)] == [30, 60, 120, 600, 600]
    assert cooldown(3, 20 * MINUTE) == 20 * MINUTE


def tally(title: str, events: int, *, component: str = "wraps-expired", **counts: int) -> Tally:
    severity = Severity.WARN if component == "agents-stale" else Severity.INFO
    return Tally(component, severity, title, events, NOW + SECOND, NOW + 3 * SECOND, counts)


def test_a_digest_of_equal_events_keeps_their_name_and_numbers() -> None:
    newest = Event("wraps-expired", Severity.INFO, "purged")
    event = digest([tally("purged", 3, deleted=6)], newest)
    assert (event.component, event.title, event.kind) == ("wraps-expired", "purged", Kind.SWEPT)
    assert event.metadata == {"deleted": 6, "events": 3}
    assert event.detail == "3 events between 2026-11-23T12:00:01Z and 2026-11-23T12:00:03Z"


def test_a_digest_of_different_events_counts_every_event_once() -> None:
    newest = Event("wraps-expired", Severity.INFO, "purged")
    event = digest([tally("purged", 2, deleted=2), tally("flagged", 2, component="agents-stale", flipped=4)], newest)
    assert event.title == "4 notifications"
    assert event.severity is Severity.WARN
    assert [one.component for one in event.tallies] == ["agents-stale", "wraps-expired"]
    assert event.metadata == {
        "events": 4,
        "agents-stale.events": 2,
        "agents-stale.flipped": 4,
        "wraps-expired.events": 2,
        "wraps-expired.deleted": 2,
    }


def test_turns_of_an_incident_end_as_the_newest() -> None:
    newest = Event("wraps-expired", Severity.ERROR, "failed", kind=Kind.FAILED)
    event = digest([tally("failed", 2), tally("recovered", 1)], newest)
    assert (event.kind, event.title, event.metadata) == (Kind.FAILED, "failed", {"events": 3})


@pytest.mark.parametrize(("kind", "other"), [(Kind.RECOVERED, Kind.FAILED), (Kind.FAILED, Kind.RECOVERED)])
def test_a_turn_ends_the_dedup_window_of_the_other_one(kind: Kind, other: Kind) -> None:
    turn = Waiting((7,), Event("wraps-expired", Severity.INFO, "turned", kind=kind), False, True, False, "")
    decision = decide(7, [turn], WELL, FREE._replace(repeat=5 * MINUTE), {}, NOW)
    assert decision.ended == {f"wraps-expired|{other}|"}
    assert decision.dedup_keys == {turn.key}


def test_what_is_held_of_an_earlier_turn_does_not_get_the_last_word() -> None:
    failed = Event("wraps-expired", Severity.ERROR, "failed", kind=Kind.FAILED)
    well = Event("wraps-expired", Severity.INFO, "recovered", kind=Kind.RECOVERED)
    held = Waiting((3, 9), failed, False, False, False, "")
    decision = decide(7, [held, Waiting((7,), well, False, True, False, "")], WELL, FREE, {held.key: NOW + MINUTE}, NOW)
    assert sent(decision) == [3, 7]
