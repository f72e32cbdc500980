"""HTML out of Python values: a text becomes markup by `escape` and in no other way.

Names of hosts, reasons of pauses and the like are written by others, so that nothing here takes a string as it is: a
string is a text, and only what this module has made is `Html`.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Union

#: Characters of a text that are shown; what is longer is cut. An attribute may have a whole drawing.
MOST_CHARACTERS, MOST_IN_ATTRIBUTE = 400, 8_000
#: Elements without an end tag; those of SVG may be closed at once.
_VOID = frozenset({"meta", "link", "path", "use"})


class Html(str):
    """Markup that may be sent as it is. Made by this module only."""

    __slots__ = ()


#: What an element may contain: a string is a text, None is nothing.
Child = Union[str, Html, None, Iterable["Child"]]  # noqa: UP007 - a name in quotes has no `|`


def escape(text: object, most: int = MOST_CHARACTERS) -> Html:
    """Return a text as markup: cut where it is long, without what is not printed or turns others around."""
    shown = str(text)
    if len(shown) > most:
        shown = shown[: most - 1] + "…"
    if not shown.isprintable():
        shown = "".join(char if char.isprintable() else " " for char in shown)
    return Html(html.escape(shown, quote=True))


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """Return an element. `class_` is the attribute class, `data_label` data-label; None leaves an attribute out."""
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is not None:
            parts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(value, MOST_IN_ATTRIBUTE)}"')
    if name in _VOID:
        return Html("".join((*parts, ">" if name in {"meta", "link"} else "/>")))
    return Html("".join((*parts, ">", join(*children), f"</{name}>")))


def join(*children: Child) -> Html:
    """Return these one after the other."""
    return Html("".join(map(_markup, children)))


def raw(literal: str) -> Html:
    """Return our own literal as markup; never a text that was read from anywhere."""
    return Html(literal)


def _markup(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str):
        return escape(child)
    return "".join(map(_markup, child))
