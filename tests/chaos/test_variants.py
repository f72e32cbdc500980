"""The checks are worth something: a broken build is found out by the check that is meant for it, a good one by none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.variants.defects import DEFECTS
from tests.chaos.variants.proving import NAMES, Proving

#: One of each check that has any; `python -m tests.chaos --variants` plays all.
IN_THE_SUITE = (
    "no-fence",
    "no-slot-mark",
    "same-token",
    "never",
    "unguarded-write",
    "workers-clock",
    "miscount",
    "event-apart",
    "polls-twice",
    "marked-first",
    "releases-anything",
    "retries-inside",
    "renews-without-progress",
)


@pytest.fixture(scope="module")
def proving() -> Iterator[Proving]:
    with Proving() as here:
        yield here


@pytest.mark.parametrize("name", IN_THE_SUITE)
def test_a_broken_build_is_found_by_the_check_that_is_meant_for_it(proving: Proving, name: str) -> None:
    proof = proving.prove(name)

    assert proof.found, str(proof)


def test_those_are_some_of_all() -> None:
    assert set(IN_THE_SUITE) < set(NAMES)
    assert {DEFECTS[name].check for name in IN_THE_SUITE} == {DEFECTS[name].check for name in NAMES}


def test_a_build_without_a_defect_is_found_by_none(proving: Proving) -> None:
    assert proving.without_a_defect() == []
