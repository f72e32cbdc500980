"""Which columns of a table have room on a terminal, and how wide each of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: Blanks between two columns.
GAP = 2


def fitting(
    widths: Mapping[str, int], width: int, *, expendable: Sequence[str], cut: str, least: int
) -> dict[str, int]:
    """Return the columns that fit into `width` characters, with the width of each.

    `widths` are those that they would like to have. What is `expendable` is left out, the first one first, but for the
    column `cut`: in its turn that is only cut, to `least` characters, and in the end it has whatever room is left.
    """
    fitted, longest, left_out = dict(widths), widths[cut], iter(expendable)
    while (room := _room(fitted, width)) < 0 and (heading := next(left_out, "")):
        if heading == cut:
            fitted[heading] = min(longest, least)
        else:
            del fitted[heading]
    fitted[cut] = max(len(cut), min(longest, fitted[cut] + room))
    return fitted


def _room(widths: Mapping[str, int], width: int) -> int:
    return width - sum(widths.values()) - GAP * (len(widths) - 1)
