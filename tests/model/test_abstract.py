"""The abstract model: no state to a depth breaks a promise, and each defect of the protocol is found."""

from __future__ import annotations

import pytest

from tests.model.abstract.defects import (
    DEFECTS,
    FenceWithoutToken,
    GiveBackByAnybody,
    GiveBackToNobody,
    ReleaseOfAnyLock,
)
from tests.model.abstract.protocol import Protocol
from tests.model.abstract.search import explore

DEPTH = 6
#: What needs many steps and no clock, pause or hand: these searches go further.
PLAIN_DEPTH = 9
NOT_PLAIN = (
    "PostgreSQL's clock is ahead",
    "PostgreSQL's clock is behind",
    "an operator pauses",
    "run by hand",
    "early tick",
)
#: Defects that show after many steps.
LONG = {FenceWithoutToken, GiveBackByAnybody, GiveBackToNobody, ReleaseOfAnyLock}
#: All that can happen: a search that has not met one of these has not searched.
ACTIONS = {
    *("tick", "early tick", "run by hand", "time goes on by half a slot"),
    *("claim, and the first batch", "claim that is the only batch", "claim whose commit is not answered"),
    *("claim: superseded", "claim: paused", "fail before the claim"),
    *("batch", "batch whose commit is not answered", "batch: fenced", "fail in a batch"),
    *("finish", "finish whose commit is not answered", "release, done", "release, not done"),
    *("write the failure down", "cannot write the failure down", "find the lock gone", "crash"),
    *("the lock expires", "Redis is wiped", "an operator pauses", "an operator resumes"),
    *("PostgreSQL's clock is ahead", "PostgreSQL's clock is behind", "PostgreSQL's clock is right again"),
}


def test_no_state_to_a_depth_breaks_a_promise() -> None:
    found = explore(Protocol(), depth=DEPTH)
    assert (found.broken, found.trace) == ("", [])
    assert found.depth == DEPTH
    assert set(found.actions) == ACTIONS
    assert found.states > 15_000
    assert found.transitions > 40_000


def test_no_longer_course_of_ticks_and_crashes_breaks_a_promise() -> None:
    found = explore(Protocol(), depth=PLAIN_DEPTH, without=NOT_PLAIN)
    assert (found.broken, found.trace) == ("", [])
    assert found.depth == PLAIN_DEPTH
    assert ACTIONS - set(found.actions) == {
        *NOT_PLAIN,
        *("an operator resumes", "claim: paused", "PostgreSQL's clock is right again"),
    }


def test_three_replicas_break_no_promise_either() -> None:
    found = explore(Protocol(), depth=DEPTH - 1, replicas=3)
    assert (found.broken, found.trace) == ("", [])


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_defect_is_found(defect: type[Protocol]) -> None:
    found = explore(defect(), depth=DEPTH + 2, without=NOT_PLAIN if defect in LONG else ())
    assert found.broken
    assert len(found.trace) == found.depth + 2  # where it began, and a shortest course of moves
