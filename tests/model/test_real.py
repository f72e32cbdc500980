"""The real code in steps: it comes to the states of the model, keeps its promises, and each defect is found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis as redis_py
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from tests.model.stepped.bench import Bench, bench
from tests.model.stepped.course import Differs, follow, play
from tests.model.stepped.defects import DEFECTS, Defect
from tests.model.stepped.machine import Steps
from tests.model.stepped.promises import Broke
from tests.support.rights.acl import GrantedRedis

#: Bounds of the searches: a course is a few milliseconds a step.
COURSES, MOVES = 40, 14
MACHINES, STEPS = 30, 20
FIXED = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    print_blob=False,
)


@pytest.fixture
def stepped(owner_database: str, redis: redis_py.Redis, redis_server: GrantedRedis) -> Iterator[Bench]:
    """Return a bench with two replicas."""
    with bench(owner_database, redis_server.owner_url()) as made:
        Steps.bench = made
        yield made


def test_a_course_of_the_model_leads_the_real_code_to_the_same_states(stepped: Bench) -> None:
    moves = 0

    @settings(FIXED, derandomize=False, max_examples=COURSES)
    @given(st.lists(st.integers(0, 10_000), min_size=MOVES, max_size=MOVES))
    def course(numbers: list[int]) -> None:
        nonlocal moves
        given_numbers = iter(numbers)
        moves += len(play(stepped, MOVES, lambda most: next(given_numbers) % most).trace)

    course()
    assert moves >= COURSES * MOVES


def test_free_steps_break_no_promise(stepped: Bench) -> None:
    Steps.taken.clear()
    run_state_machine_as_test(Steps, settings=settings(FIXED, max_examples=MACHINES, stateful_step_count=STEPS))
    taken = Steps.taken
    assert taken.total() > MACHINES * STEPS / 3
    assert {"tick: taken", "tick: refused", "by hand: taken", "expire", "wipe", "cut", "ahead", "steer"} <= set(taken)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_defect_of_the_real_code_shows_in_a_course(
    defect: Defect,
    owner_database: str,
    redis: redis_py.Redis,
    redis_server: GrantedRedis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with bench(owner_database, redis_server.owner_url()) as right:
        assert follow(right, defect.course).trace == list(defect.course)
        right.sql.execute("DROP SCHEMA moved CASCADE")
    defect.apply(monkeypatch.setattr)
    with bench(owner_database, redis_server.owner_url()) as wrong, pytest.raises(Differs):
        follow(wrong, defect.course)


@pytest.mark.parametrize("defect", [each for each in DEFECTS if each.free], ids=lambda defect: defect.name)
def test_free_steps_find_a_defect(
    defect: Defect,
    owner_database: str,
    redis: redis_py.Redis,
    redis_server: GrantedRedis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defect.apply(monkeypatch.setattr)
    search = settings(FIXED, max_examples=200, stateful_step_count=STEPS, phases=[Phase.generate])
    with bench(owner_database, redis_server.owner_url()) as Steps.bench, pytest.raises(Broke):
        run_state_machine_as_test(Steps, settings=search)
