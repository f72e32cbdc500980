"""The judge of a soak: it finds what leaks, and accuses nothing that only wavers, steps or saws."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from tests.soak.judging import DAY, LEAST, Point, judge, trend

HALF_AN_HOUR, EVERY = 1800, 10
#: As many series as a soak has, and then some.
SEEDS = range(200)


def series(value: Callable[[float], float], seconds: float = HALF_AN_HOUR) -> list[Point]:
    return [(float(at), value(at)) for at in range(0, int(seconds), EVERY)]


def noisy(seed: int, level: float, noise: float, a_day: float = 0.0) -> list[Point]:
    """Return a line with noise of a normal distribution."""
    chance = random.Random(seed)
    return series(lambda at: level + a_day * at / DAY + chance.gauss(0, noise))


def test_what_never_changes_is_flat() -> None:
    found = judge(series(lambda _at: 43.0), "number")
    assert (found.verdict, found.level, found.slope, found.low, found.high) == ("flat", 43.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("unit", "level", "a_run"),
    [("number", 43, 1), ("number", 20, 1), ("rows", 24, 1), ("MiB", 65, 1 / 1024)],
    ids=["a descriptor or a thread", "a key", "a row", "a KiB of memory"],
)
def test_one_leaked_with_each_run_is_found(unit: str, level: float, a_run: float) -> None:
    """A worker of two makes half of the four runs a second."""
    found = judge(series(lambda at: level + a_run * 2 * at), unit)
    assert found.verdict == "grows"
    assert found.slope == pytest.approx(a_run * 2 * DAY)


def test_a_leak_is_found_in_noise_and_said_with_its_interval() -> None:
    for seed in SEEDS:
        found = judge(noisy(seed, 65, 0.2, a_day=170), "MiB")
        assert found.verdict == "grows", seed
        assert found.low < 170 < found.high, seed


def test_noise_alone_is_never_accused() -> None:
    """By chance one of four thousand may be; none of these is."""
    for seed in SEEDS:
        assert judge(noisy(seed, 65, 2.0), "MiB").verdict != "grows", seed


def test_noise_is_flat_where_it_could_not_hide_the_least_that_matters() -> None:
    assert {judge(noisy(seed, 65, 0.004), "MiB").verdict for seed in SEEDS} == {"flat"}
    assert {judge(noisy(seed, 65, 2.0), "MiB").verdict for seed in SEEDS} == {"within noise"}


def test_growth_below_the_limit_is_flat_and_above_it_grows() -> None:
    below, above = 0.19 * 65, 0.22 * 65
    assert judge(noisy(1, 65, 0.001, a_day=below), "MiB").verdict == "flat"
    assert judge(noisy(1, 65, 0.001, a_day=above), "MiB").verdict == "grows"


def test_of_a_small_level_the_least_that_matters_counts() -> None:
    assert judge(noisy(1, 1, 0.001, a_day=0.9 * LEAST["MiB"]), "MiB").verdict == "flat"
    assert judge(noisy(1, 1, 0.001, a_day=1.3 * LEAST["MiB"]), "MiB").verdict == "grows"


def test_how_it_warms_up_does_not_count() -> None:
    warm = series(lambda at: min(65.0, 20 + at / 15))  # grows for 675 s of 1800
    assert judge(warm, "MiB").verdict == "flat"


def test_a_step_or_two_or_a_spike_is_not_growth() -> None:
    assert judge(series(lambda at: 65 + (at > 1300)), "MiB").verdict != "grows"
    assert judge(series(lambda at: 65 + (at > 1200) + (at > 1500)), "MiB").verdict != "grows"
    assert judge(series(lambda at: 65 + 500 * (at == 1700)), "MiB").verdict == "flat"


def test_a_saw_as_of_dead_rows_between_two_vacuums_is_not_growth() -> None:
    for period in (60, 130, 250, 400):
        found = judge(series(lambda at, period=period: 50 + 10 * (at % period) / 10), "rows")  # type: ignore[misc]
        assert found.verdict != "grows", period


def test_a_saw_whose_teeth_rise_is_growth() -> None:
    found = judge(series(lambda at: 50 + (at % 60) + at / 5), "rows")
    assert found.verdict == "grows"


def test_what_shrinks_is_flat() -> None:
    assert judge(noisy(1, 65, 0.01, a_day=-100), "MiB").verdict == "flat"


def test_what_slows_down_is_settling_and_a_leak_beside_it_grows() -> None:
    def settles(at: float) -> float:
        return 65 + 3 * (1 - math.exp(-at / 400))

    chance = random.Random(1)
    assert judge(series(lambda at: settles(at) + chance.gauss(0, 0.02)), "MiB").verdict == "settling"
    assert judge(series(lambda at: settles(at) + at / 512 + chance.gauss(0, 0.05)), "MiB").verdict == "grows"


@pytest.mark.parametrize(
    "points",
    [[], [(0.0, 1.0)], series(float, seconds=280)],
    ids=["none", "one", "seven in its last quarter"],
)
def test_too_little_is_not_judged(points: list[Point]) -> None:
    assert judge(points, "number").verdict == "too short"


def test_of_bytes_the_first_minutes_are_no_measure_and_of_other_things_they_are() -> None:
    ten_minutes = series(float, seconds=600)
    assert judge(ten_minutes, "MiB").verdict == "too short"
    assert judge(ten_minutes, "number").verdict == "grows"


def test_the_slope_is_that_of_most_pairs_whatever_a_few_points_say() -> None:
    line = [(float(n), 3.0 * n) for n in range(18)]
    assert trend(line) == (3.0, 3.0, 3.0)
    wild = [*line[:5], (5.0, 1e6), *line[6:11], (11.0, -1e6), *line[12:]]
    assert trend(wild).slope == 3.0
