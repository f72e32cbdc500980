"""An overview on a screen: the verdict, the sweepers, processes, sinks and servers, and what to do about what is wrong.

It fits any width. On a terminal of few lines what is wrong comes before what is well.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.cli.overview import sweeper_table
from app.overview.model import Overview, Problem, SinkView, Verdict
from app.overview.words import length

_STYLES = {Verdict.FINE: "bold green", Verdict.DEGRADED: "bold red", Verdict.UNKNOWN: "bold yellow"}
_WORDS = {Verdict.FINE: "fine", Verdict.DEGRADED: "degraded", Verdict.UNKNOWN: "cannot tell"}
_SINKS = {"on": "green", "off": "bold red", "resting": "yellow", "muted": "yellow"}
#: Lines of the table of sweepers at least, on a terminal of few lines: a heading, and how many are not shown.
_LEAST = 2
#: Columns of the mark before a problem.
_INDENT = 2


def whole(overview: Overview, width: int, *, wide: bool = False) -> RenderableType:
    """Return all of it, however many lines these are."""
    return Group(*_parts(overview, None if wide else width, None))


def fitted(overview: Overview, width: int, height: int, *, wide: bool = False) -> RenderableType:
    """Return what fits on a terminal of this size: problems first, then as many sweepers as there is room for."""
    below = sum(_lines(line, width) for line in _footer(overview))
    below += sum(_lines(part, width - _INDENT) for problem in overview.problems for part in _problem(problem))
    return Group(*_parts(overview, None if wide else width, max(_LEAST, height - 1 - below)))


def _parts(overview: Overview, width: int | None, height: int | None) -> Iterator[RenderableType]:
    yield _verdict(overview)
    if overview.sweepers:
        yield sweeper_table.table(overview, width, height)
    yield from _footer(overview)
    if overview.problems:
        yield _problems(overview)


def _lines(text: Text, width: int) -> int:
    """Return how many lines a text takes, and rather one too many: it is broken between words."""
    return -(-len(text) * 10 // (9 * max(1, width))) or 1


def _verdict(overview: Overview) -> Text:
    wrong = [problem for problem in overview.problems if not problem.note]
    said = _WORDS[overview.verdict]
    if wrong:
        said += f": {wrong[0].subject}: {wrong[0].text}" if len(wrong) == 1 else f": {len(wrong)} problems"
    line = Text.assemble((said, _STYLES[overview.verdict]), no_wrap=True, overflow="ellipsis")
    line.append(f"  {overview.deployment}" if overview.deployment else "", "dim")
    return line.append(f"  {overview.now:%H:%M:%S}Z", "dim")


def _footer(overview: Overview) -> Iterator[Text]:
    """Yield a line of each: processes, sinks, servers."""
    if overview.sweepers:
        yield _processes(overview)
        yield _line("sinks", [_sink(sink) for sink in overview.sinks] or [Text("none", "dim")])
    yield _line("servers", [_server(server.name, server.problem, server.version) for server in overview.servers])


def _processes(overview: Overview) -> Text:
    living = [one for one in overview.processes if one.alive]
    counts = {
        "scheduler": sum(one.schedules for one in living),
        "worker": sum(one.sweeps for one in living),
        "notifier": sum(one.notifies for one in living),
    }
    parts = [Text(f"{kind} {count}", "" if count else "bold red") for kind, count in counts.items()]
    ticked = max((one.ticked_at for one in overview.processes if one.ticked_at), default=None)
    parts.append(Text(f"last tick {length(overview.now - ticked)} ago" if ticked else "no tick yet", "dim"))
    return _line("processes", parts)


def _sink(sink: SinkView) -> Text:
    text = Text.assemble((f"{sink.name} {sink.state}", _SINKS.get(sink.state, "")))
    more = [f"{sink.waiting:,} waiting"] if sink.waiting else []
    more += [f"{sink.dead:,} dead"] if sink.dead else []
    return text.append(f" ({', '.join(more)})" if more else "")


def _server(name: str, problem: str, version: str) -> Text:
    return Text(f"{name} {problem or version or 'answers'}", "bold red" if problem else "")


def _line(heading: str, parts: list[Text]) -> Text:
    return Text.assemble((f"{heading:<10}", "dim"), Text(", ").join(parts))


def _problems(overview: Overview) -> Table:
    """Return what is wrong, each with what mends it on the line below."""
    grid = Table.grid(padding=0)
    grid.add_column(width=_INDENT)
    grid.add_column(overflow="fold")
    for problem in overview.problems:
        text, remedy = _problem(problem)
        grid.add_row(Text("-", "dim") if problem.note else Text("!", "bold red"), text)
        grid.add_row("", remedy)
    return grid


def _problem(problem: Problem) -> tuple[Text, Text]:
    """Return what is wrong, and what mends it."""
    text = Text.assemble((problem.subject, "" if problem.note else "bold"), f": {problem.text}")
    return text, Text(f"-> {problem.remedy}", "cyan")
