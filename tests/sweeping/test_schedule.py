"""Slots and the cadence that periodiq asks, with a clock that the test moves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from app.sweeping.actor import backoff
from app.sweeping.schedule import Every, microseconds, moment, slot_at

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)


class Clock:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize("seconds", [1, 1.2, 1.5, 7, 30, 60, 90, 300, 3600, 86_400])
def test_ticks_come_once_a_slot_and_never_early(seconds: float) -> None:
    interval = timedelta(seconds=seconds)
    clock = Clock(1_000_000.3)
    every = Every(interval, clock)
    assert every.validate(NOW), "the current slot is fired at the start"
    fired = [every.current()]
    for _ in range(50):
        assert not every.validate(NOW)
        due = every.next_valid_date(NOW)
        assert due > moment(int(clock.seconds * 1_000_000))
        clock.seconds = due.timestamp() + 0.003
        assert every.validate(NOW)
        fired.append(every.current())
    gaps = {later - earlier for earlier, later in pairwise(fired)}
    assert gaps == {int(seconds * 1_000_000)}


def test_waking_a_hair_early_waits_for_the_boundary_instead_of_missing_it() -> None:
    clock = Clock(100.5)
    every = Every(SECOND, clock)
    every.validate(NOW)
    clock.seconds = 100.9999
    assert not every.validate(NOW)
    assert every.next_valid_date(NOW) == datetime.fromtimestamp(101, UTC)
    clock.seconds = 101.0001
    assert every.validate(NOW)


def test_after_a_pause_one_tick_is_fired_and_it_is_aligned_again() -> None:
    clock = Clock(100.0)
    every = Every(SECOND, clock)
    every.validate(NOW)
    clock.seconds = 107.4
    assert every.validate(NOW)
    assert not every.validate(NOW)
    assert every.next_valid_date(NOW) == datetime.fromtimestamp(108, UTC)


def test_a_clock_that_wavers_about_a_boundary_fires_once() -> None:
    clock = Clock(200.0)
    every = Every(SECOND, clock)
    assert every.validate(NOW)
    for moment_of_clock in (199.5, 200.1):
        clock.seconds = moment_of_clock
        assert not every.validate(NOW)
    clock.seconds = 201.0
    assert every.validate(NOW)


@pytest.mark.parametrize("jump", [10.0, 7200.0, 40 * 86_400.0])
def test_a_clock_that_was_ahead_for_a_moment_mutes_no_tick(jump: float) -> None:
    clock = Clock(200.0)
    every = Every(SECOND, clock)
    assert every.validate(NOW)
    clock.seconds += jump
    assert every.validate(NOW)
    clock.seconds -= jump - 1
    assert every.validate(NOW)
    assert every.next_valid_date(NOW) == datetime.fromtimestamp(202, UTC)


def test_a_slot_and_its_moment_are_the_same_to_the_microsecond() -> None:
    exact = datetime(2099, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    assert moment(microseconds(exact)) == exact
    assert slot_at(microseconds(exact), SECOND) == microseconds(exact.replace(microsecond=0))


@pytest.mark.parametrize(
    ("interval", "waits"),
    [(1, []), (2, [1]), (30, [1, 2, 4, 8]), (60, [1, 2, 4, 8, 16]), (300, [1, 2, 4, 8, 16, 32, 64, 128])],
)
def test_retries_double_and_end_before_the_next_tick(interval: int, waits: list[int]) -> None:
    got: list[float] = []
    for attempt in range(20):
        wait = backoff(attempt, timedelta(seconds=interval))
        if wait is None:
            break
        got.append(wait.total_seconds())
    assert len(got) == len(waits)
    assert all(0.8 * plan <= real <= 1.2 * plan for plan, real in zip(waits, got, strict=True))


def test_no_wait_is_longer_than_an_hour_and_its_jitter() -> None:
    wait = backoff(15, timedelta(days=30))
    assert wait is not None
    assert wait <= timedelta(minutes=72)
