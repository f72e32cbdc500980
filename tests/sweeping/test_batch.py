"""The walk and its steering, without a database."""

from __future__ import annotations

import pytest

from app.sweeping.batch import AIM, FIRST_PAGES, FIRST_ROWS, MOST_PAGES, MOST_ROWS, Steering, Walk


def visited(walk: Walk, pages: int) -> list[int]:
    seen: list[int] = []
    while not walk.done:
        start, stop = walk.next(pages)
        first, last = (int(text.strip("()").split(",")[0]) for text in (start, stop))
        seen += range(first, last)
        walk.moved(stop, None)
    return seen


@pytest.mark.parametrize("pages", [1, 3, 7, 100])
@pytest.mark.parametrize("position", [0, 1, 9, 10, 11])
def test_a_walk_visits_every_page_once_from_wherever_it_starts(pages: int, position: int) -> None:
    seen = visited(Walk(position, 10), pages)
    assert sorted(seen) == list(range(10))
    assert seen[0] == (position if position < 10 else 0)


def test_a_walk_that_was_cut_short_goes_on_behind_the_last_row() -> None:
    walk = Walk(0, 10)
    assert walk.next(4) == ("(0,1)", "(4,0)")
    walk.moved("(4,0)", "(2,17)")
    assert walk.position == 2
    assert walk.next(4) == ("(2,18)", "(6,0)")


def test_pages_that_are_added_are_visited_last() -> None:
    walk = Walk(5, 10)
    walk.grow(12)
    walk.grow(12)
    assert visited(walk, 4) == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 10, 11]


def test_an_empty_table_is_done() -> None:
    assert visited(Walk(0, 0), 5) == []
    assert visited(Walk(3, 0), 5) == []


def test_quick_full_batches_grow_and_slow_ones_shrink() -> None:
    steering = Steering()
    steering.learn(AIM / 10, FIRST_ROWS)
    assert (steering.rows, steering.pages) == (FIRST_ROWS * 2, FIRST_PAGES)
    steering.learn(AIM * 10, steering.rows)
    assert steering.rows == FIRST_ROWS // 2
    for _ in range(20):
        steering.learn(AIM / 100, steering.rows)
    assert steering.rows == MOST_ROWS


def test_empty_pages_say_nothing_about_rows() -> None:
    steering = Steering()
    for _ in range(20):
        steering.learn(AIM / 100, 3)
    assert (steering.rows, steering.pages) == (FIRST_ROWS, MOST_PAGES)
    steering.learn(AIM * 2, 3)
    assert (steering.rows, steering.pages) == (FIRST_ROWS // 2, MOST_PAGES // 2)
