"""The ranges of a page scan and the size of its batches, without a database."""

from __future__ import annotations

from itertools import pairwise

import pytest

from app.sweeping.scans.batch_size import (
    AIM,
    FEWEST_ROWS_PER_PAGE,
    FIRST_PAGES,
    FIRST_ROWS,
    MOST_AIM,
    MOST_PAGES,
    MOST_ROWS,
    BatchSizer,
)
from app.sweeping.scans.page_scan import PageRanges

#: A round trip on the same machine, seconds.
LOCAL = 0.0001


def visited(ranges: PageRanges, pages: int) -> list[int]:
    seen: list[int] = []
    while not ranges.done:
        start, stop = ranges.next(pages)
        first, last = (int(text.strip("()").split(",")[0]) for text in (start, stop))
        seen += range(first, last)
        ranges.move(stop)
    return seen


@pytest.mark.parametrize("pages", [1, 3, 7, 100])
@pytest.mark.parametrize("position", [0, 1, 9, 10, 11])
def test_a_page_scan_visits_every_page_once_from_wherever_it_starts(pages: int, position: int) -> None:
    seen = visited(PageRanges(position, 10), pages)
    assert sorted(seen) == list(range(10))
    assert seen[0] == (position if position < 10 else 0)


def test_a_page_scan_that_was_cut_short_goes_on_behind_the_last_row() -> None:
    ranges = PageRanges(0, 10)
    assert ranges.next(4) == ("(0,1)", "(4,0)")
    ranges.move_behind("(2,17)")
    assert ranges.position == 2
    assert ranges.next(4) == ("(2,18)", "(6,0)")


def test_pages_that_are_added_are_visited_last() -> None:
    ranges = PageRanges(5, 10)
    ranges.grow(12)
    ranges.grow(12)
    assert visited(ranges, 4) == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 10, 11]


def test_an_empty_table_is_done() -> None:
    assert visited(PageRanges(0, 0), 5) == []
    assert visited(PageRanges(3, 0), 5) == []


def test_quick_full_batches_grow_and_slow_ones_shrink() -> None:
    sizer = BatchSizer()
    sizer.observe(AIM / 20, LOCAL, FIRST_ROWS)
    assert (sizer.rows, sizer.pages) == (FIRST_ROWS * 8, FIRST_PAGES)
    sizer.observe(AIM * 10, LOCAL, sizer.rows)
    assert sizer.rows == FIRST_ROWS * 2
    for _ in range(20):
        sizer.observe(AIM / 100, LOCAL, sizer.rows)
    assert sizer.rows == MOST_ROWS


def test_empty_pages_say_nothing_about_rows() -> None:
    sizer = BatchSizer()
    for _ in range(20):
        sizer.observe(AIM / 100, LOCAL, 3)
    assert (sizer.rows, sizer.pages) == (FIRST_ROWS, MOST_PAGES)
    sizer.observe(AIM * 2, LOCAL, 3)
    assert (sizer.rows, sizer.pages) == (FIRST_ROWS // 2, MOST_PAGES // 2)


@pytest.mark.parametrize("round_trip", [LOCAL, 0.001, 0.005, 0.020, 0.100])
def test_a_long_way_to_the_server_makes_no_batch_smaller(round_trip: float) -> None:
    """What a row costs is the slope: steering by the sum would end at the fewest rows, and make it worse."""
    sizer = BatchSizer()
    for _ in range(20):
        sizer.observe(sizer.rows * 1e-6, round_trip, sizer.rows)
    assert sizer.rows * 1e-6 >= 0.9 * AIM
    assert sizer.rows * 1e-6 <= MOST_AIM


def test_a_span_covers_the_rows_that_are_expected_by_how_densely_the_last_ones_lay() -> None:
    sizer = BatchSizer()
    sizer.observe(AIM, LOCAL, FIRST_ROWS, pages=FIRST_ROWS / 25)
    assert sizer.dense
    assert sizer.span == FIRST_ROWS // 25
    for _ in range(20):
        sizer.observe_span(AIM / 100, LOCAL, sizer.span, found=sizer.span * 25)
    assert sizer.span == MOST_ROWS // 25


def test_rows_that_lie_apart_are_not_changed_by_ranges_of_pages() -> None:
    sizer = BatchSizer()
    assert not sizer.dense
    sizer.observe(AIM, LOCAL, FIRST_ROWS, pages=FIRST_ROWS)
    assert not sizer.dense
    sizer.observe(AIM, LOCAL, FIRST_ROWS, pages=FIRST_ROWS / FEWEST_ROWS_PER_PAGE)
    assert sizer.dense


def test_a_span_grows_at_most_eightfold_at_once_and_stays_bounded_where_rows_are_few() -> None:
    sizer = BatchSizer()
    sizer.observe(AIM, LOCAL, FIRST_ROWS, pages=FIRST_ROWS / 100)
    spans = [sizer.span]
    for _ in range(20):
        sizer.observe_span(AIM / 100, LOCAL, sizer.span, found=1)
        spans.append(sizer.span)
    assert all(after <= 8 * before for before, after in pairwise(spans))
    assert spans[-1] <= MOST_ROWS / FEWEST_ROWS_PER_PAGE
    assert not sizer.dense


def test_a_span_that_was_slow_shrinks_whatever_it_found() -> None:
    for found in (1, FIRST_ROWS):
        sizer = BatchSizer()
        before = sizer.rows
        sizer.observe_span(AIM * 10, LOCAL, sizer.span, found=found)
        assert sizer.rows < before
