"""Tables that stay tables for those who cannot see them, and become cards on a narrow screen, and the marks in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from app.page.markup import Child, Html, join, raw, tag

#: Shapes beside the words that they stand for: no state is told by colour alone.
_TRIANGLE = '<path d="M6 .6l5.6 10.3H.4z" class="disc"/><path d="M6 4.2v3.2M6 8.7v.9" class="cut"/>'
_SHAPES = {
    "ok": '<circle cx="6" cy="6" r="5" class="disc"/><path d="M3.6 6.2l1.7 1.7 3.2-3.6" class="cut"/>',
    "bad": _TRIANGLE,
    "warn": _TRIANGLE,
    "note": '<circle cx="6" cy="6" r="5" class="disc"/><path d="M6 5.5v3.2M6 3.2v.5" class="cut"/>',
    "paused": '<circle cx="6" cy="6" r="5" class="disc"/><path d="M4.6 4v4M7.4 4v4" class="cut"/>',
    "off": '<circle cx="6" cy="6" r="4.3" class="ring"/>',
    "busy": '<circle cx="6" cy="6" r="5" class="disc"/><path d="M5 3.9L8.2 6 5 8.1z" class="hole"/>',
    "unknown": '<circle cx="6" cy="6" r="4.3" class="ring dashed"/>',
}
#: The colour of a mark, where that is not called as the mark is.
_TONES = {"note": "off", "paused": "warn", "unknown": "off"}


class Column(NamedTuple):
    """A column: its heading, and whether it has numbers, which stand right."""

    heading: str
    number: bool = False
    #: Further classes: `w3`, `w6`, `w8` and `w12` are how many twelfths of a card it takes, in place of four.
    class_: str = ""


def icon(shape: str) -> Html:
    """Return a mark, which the word beside it explains."""
    return tag(
        "svg",
        raw(_SHAPES[shape]),
        class_=f"icon {_TONES.get(shape, shape)}",
        viewBox="0 0 12 12",
        width=12,
        height=12,
        aria_hidden="true",
    )


def marked(shape: str, *words: Child) -> Html:
    """Return words with a mark before them."""
    return tag("span", icon(shape), tag("span", *words), class_=f"marked t-{_TONES.get(shape, shape)}")


def clipped(text: str, class_: str = "clip") -> Html:
    """Return a name that is cut where there is no room for it, and read in full when it is pointed at."""
    return tag("span", text, class_=class_, title=text)


def note(*words: Child, tone: str = "") -> Html:
    """Return a smaller second line of a cell."""
    return tag("div", *words, class_=f"note {tone}".strip())


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Child]], class_: str = "") -> Html:
    """Return a table whose first column names the row. Roles are repeated: a card's `display` would take them away."""
    head = tag(
        "tr", *(tag("th", column.heading, **_classes(column), scope="col", role="columnheader") for column in columns),
        role="row",
    )  # fmt: skip
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", head, role="rowgroup"),
        tag("tbody", *(_row(columns, row) for row in rows), role="rowgroup"),
        role="table",
        class_=class_ or None,
    )


def _row(columns: Sequence[Column], cells: Sequence[Child]) -> Html:
    (first, *others), (named, *rest) = columns, cells
    return tag(
        "tr",
        tag("th", named, **_classes(first), scope="row", role="rowheader"),
        *(
            tag("td", content, **_classes(column), role="cell", data_label=column.heading)
            for column, content in zip(others, rest, strict=True)
        ),
        role="row",
    )


def _classes(column: Column) -> dict[str, object]:
    words = " ".join(filter(None, ("n" if column.number else "", column.class_)))
    return {"class_": words or None}


def section(name: str, title: str, *content: Child, beside: Child = None) -> Html:
    """Return a part of the page under a heading, with a few words beside it."""
    heading = tag("h2", title, id=f"{name}-title")
    return tag(
        "section",
        tag("div", heading, tag("p", beside, class_="beside") if beside else None, class_="head"),
        join(*content),
        id=name,
        aria_labelledby=f"{name}-title",
    )
