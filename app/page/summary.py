"""The upper part of the page: the verdict, what is wrong and what mends it, and the numbers that matter at a glance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from app.overview.model import Overview, Problem, ServerView, State, Verdict
from app.page.fleet import recent
from app.page.format import NONE, count, plural
from app.page.markup import MOST_CHARACTERS, Child, Html, join, tag
from app.page.table import icon, section

#: Problems that are shown.
MOST_PROBLEMS = 30
_SERVERS = {"postgres": "PostgreSQL", "redis": "Redis"}
SHAPES = {Verdict.FINE: "ok", Verdict.DEGRADED: "bad", Verdict.UNKNOWN: "unknown"}


def verdict(found: Verdict, problems: int) -> Html:
    """Return the verdict in a word, and how many problems there are."""
    number = tag("span", plural(problems, "problem"), class_="number") if problems else None
    shape = SHAPES[found]
    tone = {"ok": "ok", "bad": "bad"}.get(shape, "off")
    return tag("p", icon(shape), tag("strong", found.value.capitalize()), number, class_=f"verdict t-{tone}")


def wrong(overview: Overview) -> list[Problem]:
    """Return the problems that make a deployment less than fine; the others are worth to be known."""
    return [problem for problem in overview.problems if not problem.note]


def problems(overview: Overview) -> Html:
    """Return what is not as it should be, and what is worth to be known."""
    bad, notes = wrong(overview), [problem for problem in overview.problems if problem.note]
    calm = tag("p", icon("ok"), "Nothing needs attention.", class_="calm")
    return join(
        calm if overview.verdict is Verdict.FINE else None,
        _list("problems", "What is wrong, and what mends it", bad) if bad else None,
        _list("notes", "Worth knowing", notes) if notes else None,
    )


def _list(name: str, title: str, found: Sequence[Problem]) -> Html:
    shown = found[:MOST_PROBLEMS]
    hidden = len(found) - len(shown)
    more = tag("p", f"and {plural(hidden, 'more', 'more')}", class_="empty") if hidden else None
    return section(name, title, tag("ul", *map(_problem, shown), class_=f"problems {name}"), more)


def _problem(problem: Problem) -> Html:
    remedy = tag("p", tag("span", "Remedy: ", class_="word"), _with_code(problem.remedy), class_="remedy")
    what = tag("p", tag("strong", problem.subject), " ", _with_code(problem.text))
    return tag("li", icon("note" if problem.note else "bad"), tag("div", what, remedy if problem.remedy else None))


def _with_code(text: str) -> Html:
    """Return a text in which what stands between backticks is a command."""
    parts = text[:MOST_CHARACTERS].split("`")
    return join(*(tag("code", part) if at % 2 else part for at, part in enumerate(parts)))


def tiles(overview: Overview) -> Html:
    """Return the numbers that matter, each with a link to its section."""
    known = (*_sweeping(overview), *_notifying(overview)) if overview.sweepers else ()
    shown = (*known, *map(_server, overview.servers))
    return tag("ul", *shown, class_="tiles", aria_label="At a glance")


def _tile(target: str, title: str, value: str, note: str, tone: str = "") -> Html:
    words = (tag("span", title, class_="title"), tag("span", value, class_="value"), tag("span", note, class_="sub"))
    inside = tag("a", *words, href=f"#{target}") if target else tag("div", *words)
    return tag("li", inside, class_=tone or None)


def _sweeping(overview: Overview) -> Iterator[Html]:
    states = Counter(view.state for view in overview.sweepers)
    others = ", ".join(f"{states[state]} {state.value}" for state in State if state is not State.ON and states[state])
    held = states[State.PAUSED] + states[State.BRAKED] > 0
    yield _tile("sweepers", "Sweepers", f"{states[State.ON]} on", others or "all of them", "warn" if held else "")
    overdue = {view.name for view in overview.sweepers if view.overdue_since}
    failing = {view.name for view in overview.sweepers if view.failures}
    sub = f"{len(overdue)} overdue, {len(failing)} failing" if overdue or failing else "none overdue or failing"
    yield _tile("sweepers", "In trouble", str(len(overdue | failing)), sub, "bad" if overdue or failing else "")
    counted = [view.backlog for view in overview.sweepers if view.backlog is not None]
    more = "+" if any(backlog.more for backlog in counted) else ""
    rows = f"{count(sum(backlog.rows for backlog in counted))}{more}" if counted else NONE
    yield _tile("sweepers", "Rows due", rows, f"in {plural(len(counted), 'sweeper')}" if counted else "not counted")
    living = sum(process.alive for process in overview.processes)
    gone = sum(not process.alive and process.ended_at is None for process in recent(overview))
    hosts = len({process.host for process in overview.processes if process.alive})
    words = f"{gone} gone" if gone else f"on {plural(hosts, 'host')}"
    yield _tile("processes", "Processes", f"{living} alive", words, "" if living else "bad")


def _notifying(overview: Overview) -> Iterator[Html]:
    waiting, dead = sum(sink.waiting for sink in overview.sinks), sum(sink.dead for sink in overview.sinks)
    not_on = sum(sink.state != "on" for sink in overview.sinks)
    state = f"{not_on} of {len(overview.sinks)} not on" if not_on else f"to {plural(len(overview.sinks), 'receiver')}"
    yield _tile("receivers", "Deliveries", f"{count(waiting)} waiting", state, "warn" if not_on else "")
    yield _tile("receivers", "Dead letters", count(dead), "given up" if dead else "none", "bad" if dead else "")


def _server(server: ServerView) -> Html:
    words: Child = server.problem.replace("_", " ") if server.problem else (server.version or "well")
    return _tile(
        "",
        _SERVERS.get(server.name, server.name),
        str(words),
        server.detail or ("is of no use now" if server.problem else "well"),
        "bad" if server.problem else "",
    )
