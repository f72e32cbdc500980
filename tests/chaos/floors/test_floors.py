"""How many effects are enough, as it is counted."""

from __future__ import annotations

import pytest

from tests.chaos.floors import each, some, too_few, without

KINDS = ("full", "replica", "paused")


@pytest.mark.parametrize(
    ("least", "seconds", "wanted"),
    [(0.5, 60, 1), (0.5, 600, 5), (0.5, 130, 2), (7, 60, 7), (7, 10, 2), (0.1, 600, 1), (0.1, 1800, 3)],
)
def test_a_part_of_an_effect_is_one(least: float, seconds: float, wanted: int) -> None:
    floor = [each(least, "full")]

    assert too_few(floor, {"full": wanted}, seconds) == []
    assert too_few(floor, {"full": wanted - 1}, seconds) == [
        f"full: {wanted - 1} with an effect, at least {wanted} were to be"
    ]


def test_each_kind_is_asked_for_by_itself() -> None:
    assert len(too_few([each(1, *KINDS)], {"full": 9}, 60)) == 2


@pytest.mark.parametrize(("seconds", "wanted"), [(60, 2), (90, 3), (6000, 3)])
def test_of_some_kinds_so_many_different_ones_are_asked_for_until_it_is_all(seconds: float, wanted: int) -> None:
    floor = [some(2, *KINDS)]

    assert too_few(floor, dict.fromkeys(KINDS[:wanted], 1), seconds) == []
    assert too_few(floor, dict.fromkeys(KINDS[: wanted - 1], 100), seconds) == [
        f"{wanted - 1} kinds with an effect of full, replica, paused: at least {wanted} were to be"
    ]


def test_a_limit_holds_however_long_it_takes() -> None:
    assert too_few([some(2, *KINDS, most=2)], {"full": 1, "paused": 1}, 6000) == []


def test_what_is_left_out_is_not_asked_for() -> None:
    assert without([each(1, "full"), some(2, *KINDS)], {"full", "paused"}) == (some(2, "replica", most=3),)
