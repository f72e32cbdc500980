"""Where commands print: what was read of a row is shown as characters, and none of it steers a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment


class Terminal(Console):
    """A console that leaves control characters out, but for line ends and those that rich makes itself."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is to be printed; what is left out has no width, so that tables stay as they are."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


def plain(text: str) -> str:
    """Return a text without what is neither printable nor an end of a line."""
    return text if text.isprintable() else "".join(each for each in text if each.isprintable() or each == "\n")
