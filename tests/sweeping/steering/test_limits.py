"""What a brake's setting may say."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction

import pytest

from actors import SWEEPERS
from actors.wraps_expired import WrapsExpired
from app.core.config import variables
from app.core.errors import ConfigError
from app.sweeping.steering.limits import BrakeLimits, parse_brake

HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("10x", BrakeLimits(Fraction(10), None, HOUR)),
        ("25%", BrakeLimits(None, Fraction(1, 4), HOUR)),
        ("1.5x,0.5%,30m", BrakeLimits(Fraction(3, 2), Fraction(1, 200), timedelta(minutes=30))),
        ("never,10x", BrakeLimits(Fraction(10), None, None)),
    ],
)
def test_it_is_read(text: str, limits: BrakeLimits) -> None:
    assert parse_brake(text) == limits


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1h", "has no limit"),
        ("1x", "more than 1x"),
        ("0%", "more than 0%"),
        ("100%", "not a brake"),
        ("10x,20x", "says a multiple twice"),
        ("10x,1h,never", "says a time twice"),
        ("10x,0s", "at least 1s"),
        ("10x, 25%", "not a brake"),
        ("10", "not a brake"),
        ("٣x", "not a brake"),
    ],
)
def test_what_is_wrong_is_told_with_what_is_accepted(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match="accepted: 10x, 25% or both") as refused:
        parse_brake(text)
    assert problem in str(refused.value)


def test_each_sweeper_has_a_variable_of_its_own_beside_its_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [variable.names for sweeper in SWEEPERS for variable in variables(sweeper.settings)]
    brakes = [name for (name, *_) in names if name.endswith("_BRAKE")]
    assert len(set(brakes)) == len(SWEEPERS)
    assert {brake.replace("_BRAKE", "_INTERVAL") for brake in brakes} <= {name for (name, *_) in names}
    monkeypatch.setenv("SB_SWEEP_WRAPS_BRAKE", "10x,25%")
    monkeypatch.setenv("SB_SWEEP_AGENTS_BRAKE", "canary")
    assert WrapsExpired.read().brake == BrakeLimits(Fraction(10), Fraction(1, 4), HOUR)
    with pytest.raises(ConfigError) as refused:
        SWEEPERS[2].settings.read()
    assert str(refused.value).startswith("SB_SWEEP_AGENTS_BRAKE: not a brake; accepted: ")
    assert "canary" not in str(refused.value)


def test_it_is_off_unless_set() -> None:
    assert [sweeper.settings.read().brake for sweeper in SWEEPERS] == [None] * len(SWEEPERS)
