"""All faults at once, for a short while: what `make chaos` does for ten minutes a round.

Redis's clock is left out here, and is in the rounds: what Redis is to keep for a minute, such as that a connection
rests which was just discovered, it keeps for as long as that clock was ahead.
"""

from __future__ import annotations

from dataclasses import replace

from tests.chaos.faults.clocks import postgres_clock_jumps
from tests.chaos.faults.fault import Strike
from tests.chaos.playing import play
from tests.chaos.reporting.report import lines
from tests.chaos.rounds import ROUNDS

#: What has to have happened; it takes as long as it takes.
ENOUGH = {
    "kill in a transaction": 1,
    "stop in a transaction": 2,
    "redis wiped": 1,
    "postgres crashed": 1,
    "network": 2,
    "sink": 1,
}


def test_nothing_is_found_when_everything_goes_wrong_at_once() -> None:
    every = [
        strike._replace(every=strike.every / 4)
        for strike in ROUNDS["all"].strikes
        if strike.name != "clocks of servers"
    ]
    every.append(Strike("clocks of servers", postgres_clock_jumps, every=3.0))
    short = replace(ROUNDS["all"], strikes=every, floors=())
    played = play(short, seed=14, seconds=10, enough=ENOUGH)

    assert played.passed, "\n".join(lines(played))
    assert {kind: times for kind, times in ENOUGH.items() if played.effects.get(kind, 0) < times} == {}
