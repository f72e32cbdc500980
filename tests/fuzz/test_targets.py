"""Each target holds for as many cases as the suite has time for, and for every input that once broke it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example as with_example
from hypothesis import given, settings

from tests.fuzz.target import UNHURRIED, Target
from tests.fuzz.targets import TARGETS


class Fixtures:
    """The suite's servers, as who may put anything into them, started when a target asks for them."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    def postgres(self) -> str:
        url: str = self._request.getfixturevalue("owner_database")
        return url

    def redis(self) -> str:
        self._request.getfixturevalue("redis")
        url: str = self._request.getfixturevalue("redis_server").owner_url()
        return url


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_holds(target: Target[Any], request: pytest.FixtureRequest) -> None:
    with target.opened(Fixtures(request)) as holds:
        case = given(target.everything)(holds_of(holds))
        for value in target.found:
            case = with_example(value)(case)
        settings(max_examples=target.cases, suppress_health_check=UNHURRIED)(case)()


def holds_of(holds: Any) -> Any:
    def case(value: Any) -> None:
        holds(value)

    return case
