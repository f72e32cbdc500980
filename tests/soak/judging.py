"""Whether a series grows: a straight line through its second half, with what chance may have done to it.

The first half is how a deployment warms up. What is left is cut into at most eighteen pieces, each stands for itself
by its median, so that neither a spike nor one vacuum counts; the slope is that of Theil and Sen, the median of the
slopes of all pairs of pieces, and its interval that of Sen, by Kendall's test: at 3.5 standard deviations chance alone
puts one series of four thousand above it, and a soak has a hundred. A series

- `grows` when even the lower end of the interval is more than the limit: by a fifth of its level, or by the least that
  matters for its unit, within a day;
- is `settling` when it did, but the last quarter of the soak is flat by itself, or has clearly slowed down: the whole
  of its interval is below that of the quarter before. A leak does not slow down, caches and allocators do;
- is `flat` when even the upper end is not more than the limit;
- is `within noise` between them: a longer soak would tell. The table says how much it may be at most;
- is `too short` to be judged when the last quarter has fewer than eight samples, and one of bytes when its second half
  begins in the first fourteen minutes: so long Python, PostgreSQL and the C library take to have seen everything once.

Steps (an arena, a table's next page) are not growth until there are many of them: of a series that has risen two or
three times in all, most pairs have no slope.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

Point = tuple[float, float]
Verdict = Literal["flat", "within noise", "settling", "grows", "too short"]

DAY = 86_400.0
PIECES, LEAST_SAMPLES = 18, 8
#: Seconds in which a unit warms up, if it takes longer than half of a short soak.
WARM_UP = {"MiB": 840.0}
#: Standard deviations of Kendall's score on either side.
DEVIATIONS = 3.5
#: What a series may gain in a day: this share of its level, or the least that matters, whichever is more.
SHARE = 0.2
LEAST = {"MiB": 8.0, "number": 24.0, "rows": 1000.0, "s": 0.5, "% CPU": 5.0}


class Trend(NamedTuple):
    """A slope with its interval, in units a second."""

    slope: float
    low: float
    high: float


class Judgement(NamedTuple):
    """What is said of a series; all but the verdict in its unit, the slope and its interval a day."""

    verdict: Verdict
    level: float
    slope: float
    low: float
    high: float
    limit: float


def judge(points: Sequence[Point], unit: str) -> Judgement:
    """Judge a series by its second half. `points` are seconds, ascending, and values."""
    half = _half(points)
    third, last = _half(half, later=False), _half(half)
    level = statistics.median(value for _, value in half) if half else 0.0
    limit = max(SHARE * abs(level), LEAST[unit])
    if min(len(third), len(last)) < LEAST_SAMPLES or half[0][0] < WARM_UP.get(unit, 0.0):
        return Judgement("too short", level, 0.0, 0.0, 0.0, limit)
    slope, low, high = (DAY * end for end in trend(_pieces(half)))
    verdict: Verdict = "grows" if low > limit else "flat" if high <= limit else "within noise"
    if verdict == "grows":
        before, now = trend(_pieces(third)), trend(_pieces(last))
        if DAY * now.high <= limit or now.high < before.low:
            verdict = "settling"
    return Judgement(verdict, level, slope, low, high, limit)


def trend(points: Sequence[Point]) -> Trend:
    """Return the slope of Theil and Sen with the interval of Sen."""
    slopes = sorted((y - before) / (x - earlier) for n, (x, y) in enumerate(points) for earlier, before in points[:n])
    count = len(points)
    width = DEVIATIONS * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    first = max(0, math.floor((len(slopes) - width) / 2) - 1)
    return Trend(statistics.median(slopes), slopes[first], slopes[-1 - first])


def _half(points: Sequence[Point], *, later: bool = True) -> Sequence[Point]:
    if not points:
        return points
    middle = (points[0][0] + points[-1][0]) / 2
    return [point for point in points if (point[0] >= middle) == later]


def _pieces(points: Sequence[Point]) -> list[Point]:
    count = min(PIECES, len(points))
    bounds = [n * len(points) // count for n in range(count + 1)] if count else []
    return [_median(points[start:end]) for start, end in pairwise(bounds)]


def _median(points: Sequence[Point]) -> Point:
    return statistics.median(x for x, _ in points), statistics.median(y for _, y in points)
