"""What rounds strike with is what they are judged by, and what is said of them; what cannot be played is not passed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos import __main__ as command
from tests.chaos import preload
from tests.chaos.faults.fault import ByTurns, Strike, counting
from tests.chaos.floors import too_few
from tests.chaos.rounds import ROUNDS, Round, without_gcc
from tests.support.processes import ROOT

PAGE = ROOT / "docs" / "reliability.md"
#: Words of the page's table of what strikes, by the effects that they stand for.
SAID = {
    "kill": {
        "workers": "kill of: worker",
        "notifiers": "kill of: notifier",
        "schedulers": "kill at random: scheduler",
        "main processes": "kill of: main",
        "children": "kill of: child",
        "in the middle of a transaction": "kill in a transaction",
    },
    "stops": {
        "a claim": "stop at: claim",
        "a batch": "stop at: batch",
        "the end of a run": "stop at: end of a run",
        "the outbox": "stop at: outbox",
        "shorter": "stop: shorter than the lease",
        "longer than the lease": "stop: longer than the lease",
        "several at once": "several stopped at once",
    },
    "redis": {
        "killed and empty": "redis killed",
        "flushed": "redis flushed",
        "its locks deleted": "redis locks deleted",
        "full": "redis full",
        "a replica": "redis replica",
        "disconnected": "redis clients killed",
        "paused": "redis paused",
        "its scripts forgotten": "redis scripts flushed",
    },
    "postgres": {
        "crashed (immediate shutdown)": "postgres crashed",
        "read-only": "postgres read-only",
        "its disk full": "postgres disk full",
        "no connection left": "postgres connections used up",
        "all sessions ended": "postgres thrown out",
        "a table locked": "postgres table locked",
        "its checkpointer stopped": "postgres checkpointer stopped",
        "paused": "postgres paused",
    },
    "network": {
        "connections reset": "network: reset",
        "cut in an answer": "network: cut",
        "silent": "network: silent",
        "parted": "network: parted",
        "slow": "network: slow",
        "answers late": "network: late answers",
        "lost": "network: lost answers",
        "of one process": "network: reset",
        "of all": "network: reset, to all",
    },
    "clocks": {
        "a second to an hour off": "clock off: 3600 s",
        "schedulers": "clock of a scheduler",
        "workers": "clock of a worker",
        "notifiers": "clock of a notifier",
        "Redis": "clock of redis",
        "PostgreSQL": "clock of postgres",
    },
    "sinks": {"receivers": "sink: webhook", "mail": "sink: email", "ArgoCD": "argocd"},
    "operator": {
        "pauses": "pause",
        "mutes": "mute",
        "runs by hand": "sweep",
        "`unlock`": "unlock",
        "a Go worker": "go",
        "intervals roll through": "intervals mixed",
    },
    "all": {},
    "none": {},
}


def _asked_for(made: Round) -> set[str]:
    return {kind for floor in made.floors for kind in floor.kinds}


@pytest.mark.parametrize("made", ROUNDS.values(), ids=ROUNDS)
def test_each_kind_of_effect_that_a_round_may_have_is_asked_for_and_no_other(made: Round) -> None:
    assert {kind for strike in made.strikes for kind in strike.strike.kinds} == _asked_for(made)
    assert all(strike.strike.kinds for strike in made.strikes)


def test_a_fault_without_a_floor_is_noticed() -> None:
    odd = Strike("odd", ByTurns(counting("odd")(lambda _deployment, _chance, _over: None)), every=1.0)
    made = replace(ROUNDS["kill"], strikes=[*ROUNDS["kill"].strikes, odd])

    with pytest.raises(AssertionError):
        test_each_kind_of_effect_that_a_round_may_have_is_asked_for_and_no_other(made)


@pytest.mark.parametrize("name", [name for name in ROUNDS if name != "none"])
def test_a_round_of_a_minute_without_an_effect_lacks_every_floor(name: str) -> None:
    made = ROUNDS[name]

    assert len(too_few(made.floors, {}, 60)) >= len(made.floors) > 0


@pytest.mark.parametrize("name", ROUNDS)
def test_what_the_page_names_is_asked_for(name: str) -> None:
    row = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}` |"))

    assert [words for words in SAID[name] if words not in row] == []
    assert set(SAID[name].values()) <= _asked_for(ROUNDS[name])


def test_everything_at_once_is_everything() -> None:
    single = {kind for name, made in ROUNDS.items() if name != "all" for kind in _asked_for(made)}

    assert _asked_for(ROUNDS["all"]) == single


def test_without_gcc_a_round_of_clocks_is_not_played_and_others_say_what_is_left_out() -> None:
    assert without_gcc(ROUNDS["clocks"]) is None
    assert without_gcc(ROUNDS["none"]) == ROUNDS["none"]
    assert without_gcc(ROUNDS["kill"]) == ROUNDS["kill"]
    postgres = without_gcc(ROUNDS["postgres"])
    assert postgres is not None
    assert postgres.text.endswith("(not played: postgres disk full: needs gcc)")
    assert _asked_for(ROUNDS["postgres"]) - _asked_for(postgres) == {"postgres disk full"}
    everything = without_gcc(ROUNDS["all"])
    assert everything is not None
    gone = _asked_for(ROUNDS["all"]) - _asked_for(everything)
    assert gone == {"postgres disk full"} | _asked_for(ROUNDS["clocks"])
    assert not [strike.name for strike in everything.strikes if "clock" in strike.name]


def test_a_round_that_is_asked_for_and_cannot_be_played_is_not_passed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preload, "GCC", None)

    assert command.main(["--round", "clocks"]) == 1

    said = capsys.readouterr().out.splitlines()
    assert said == ["round clocks: not played: needs gcc", "not played: needs gcc: clocks"]
