"""The pages of a worker, from the newest reading of its deployment, and what is known where that fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import structlog

from app import __version__
from app.core.config import Row
from app.core.errors import describe
from app.overview.as_json import JsonWriter
from app.overview.model import Overview, Verdict
from app.page import summary
from app.page.configuration import all_settings, configuration, settings
from app.page.document import HEADERS, NAME, REFRESH_SECONDS, document
from app.page.fleet import processes
from app.page.format import at, span
from app.page.markup import MOST_CHARACTERS, Child, Html, join, tag
from app.page.receivers import failures, receivers
from app.page.sweepers import sweepers
from app.page.table import icon

log = structlog.get_logger("worker")

#: The page that refreshes itself, the same one that does not, all settings, and the overview for programs.
PAGE, STILL, SETTINGS, JSON = "/", "/still", "/configuration", "/status.json"
PATHS = frozenset({PAGE, STILL, SETTINGS, JSON})
_WRITER = JsonWriter(most_parts=100, most_characters=MOST_CHARACTERS, compact=True)


class Reply(NamedTuple):
    """What a browser is sent."""

    body: bytes
    content_type: str
    status: int = 200
    headers: tuple[tuple[str, str], ...] = HEADERS


class Shown(NamedTuple):
    """One reading as it is shown to everybody who asks."""

    title: str
    verdict: Verdict
    head: Html
    main: Html
    json: bytes
    #: Whether it is a new reading; False where it is an earlier one, or none.
    current: bool


class _Known(NamedTuple):
    """The last good reading, its sections as they are shown, and when that was, monotonic seconds."""

    overview: Overview
    sections: Html
    read_at: float


class Site:
    """The pages. `read` may raise; `state` is a word about this process: ready, booting or draining."""

    def __init__(
        self, deployment: str, rows: Sequence[Row], read: Callable[[], Overview], state: Callable[[], str]
    ) -> None:
        self._deployment = deployment
        self._settings = settings(rows)
        self._configuration = configuration(self._settings)
        self._read = read
        self._state = state
        self._known: _Known | None = None

    def make(self) -> Shown:
        """Read, and return what is shown, in a thread that may wait. A reading that fails is shown as that."""
        try:
            overview = self._read()
        except Exception as error:  # noqa: BLE001 - it is said on the page
            failure = describe(error)
            log.warning("overview not read", **failure._asdict())
            return self._without_reading(
                f"The overview cannot be read: {failure.error} {failure.sqlstate or ''}".rstrip()
            )
        if not overview.sweepers:
            return self._show(overview, self._known, "PostgreSQL cannot be read now")
        self._known = _Known(overview, _sections(overview), time.monotonic())
        return self._show(overview, self._known)

    def late(self) -> Shown:
        """Return what is shown while a reading takes too long; without waiting."""
        return self._without_reading("PostgreSQL or Redis does not answer in time")

    def reply(self, path: str, shown: Shown) -> Reply:
        """Return the answer for one of PATHS."""
        if path == JSON:
            return Reply(shown.json, "application/json", 200 if shown.current else 503)
        title, verdict = f"{shown.title} · {NAME}", shown.verdict
        content = (self._header(shown.head, _refreshing(path)), tag("main", shown.main), _footer())
        if path == SETTINGS:
            title, verdict = f"Configuration · {self._deployment} · {NAME}", Verdict.UNKNOWN
            back = tag("nav", tag("a", "← Overview", href=PAGE))
            content = (self._header(back), tag("main", all_settings(self._settings)), _footer())
        return Reply(document(title, verdict, *content, refresh=path == PAGE), "text/html; charset=utf-8")

    def _without_reading(self, why: str) -> Shown:
        return self._show(Overview(self._deployment, datetime.now(UTC), (), (), (), ()), self._known, why)

    def _show(self, now: Overview, known: _Known | None, why: str = "") -> Shown:
        """Show what is known now, and what was known of the rest; `why` is what keeps that from being known now."""
        state = self._state()
        shown = _with_news(known.overview, now) if known else now
        main = join(
            *_about_process(state),
            _about_reading(why, known) if why else None,
            summary.problems(shown),
            summary.tiles(shown) if known or now.servers else None,
            known.sections if known else None,
            self._configuration,
        )
        head = tag("div", summary.verdict(shown.verdict, len(summary.wrong(shown))), _read_at(shown), class_="state")
        json = _WRITER.text({"process": state, "current": not why, "why_not": why, **vars(shown)}).encode() + b"\n"
        return Shown(
            f"{shown.verdict.value.capitalize()} · {self._deployment}", shown.verdict, head, main, json, not why
        )

    def _header(self, *content: Child) -> Html:
        name = tag("div", tag("p", NAME, class_="over"), tag("h1", self._deployment), class_="names")
        return tag("header", name, *content)


def _with_news(known: Overview, now: Overview) -> Overview:
    """Return what was known, with what is known now of servers and problems."""
    return replace(known, servers=now.servers or known.servers, problems=now.problems, verdict=now.verdict)


def _sections(known: Overview) -> Html:
    return join(sweepers(known), failures(known), processes(known), receivers(known))


def _about_reading(why: str, known: _Known | None) -> Html:
    if known is None:
        return _notice("bad", f"{why}. Nothing is known yet of sweepers, processes and notifications.")
    moment, age = known.overview.now, timedelta(seconds=time.monotonic() - known.read_at)
    return _notice("bad", f"{why}. What is below is as it was at ", at(moment, moment), f" UTC, {span(age)} ago.")


def _about_process(state: str) -> tuple[Html, ...]:
    if state == "booting":
        return (_notice("busy", "This process is booting: it does no work yet."),)
    if state == "draining":
        words = "This process is stopping: it takes no new work, and this page ends with it."
        return (_notice("paused", words),)
    return ()


def _notice(shape: str, *words: Child) -> Html:
    return tag("div", icon(shape), tag("p", *words), class_=f"notice {shape}", role="status")


def _read_at(overview: Overview) -> Html:
    return tag("p", "as of ", at(overview.now, overview.now), " UTC", class_="read")


def _refreshing(path: str) -> Html:
    if path == STILL:
        return tag("nav", "standing still", tag("a", "refresh", href=PAGE), tag("a", "JSON", href=JSON))
    words = f"refreshes every {REFRESH_SECONDS}s"
    return tag("nav", words, tag("a", "hold still", href=STILL), tag("a", "JSON", href=JSON))


def _footer() -> Html:
    return tag("footer", tag("p", f"{NAME} {__version__}. Read-only: nothing can be changed here."))
