"""What the page says of an overview, of an earlier one, and of none; and that it says nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from enum import Enum
from html.parser import HTMLParser
from typing import Any

import psycopg
import pytest

from app.core.config import Row
from app.overview.as_json import JsonWriter
from app.overview.model import Overview, RunPoint, Verdict
from app.page.document import STYLE
from app.page.format import seconds, span
from app.page.site import JSON, PAGE, SETTINGS, STILL, Site
from tests.page import samples

HOSTILE = "<script>alert('1')</script>\"><img src=x onerror=alert(1)>'`${x}"
ROWS = [
    Row("DATABASE_URL", "set", "DATABASE_URL_FILE", "", "where PostgreSQL is", ()),
    Row("LOG_LEVEL", "value-to-hide", "LOG_LEVEL", "info", "debug, info, warn or error", ()),
    Row("SB_ENV", "default-to-hide", "default", "production", "dev or production", ()),
]
#: The elements and attributes that the page is made of: none of them can do or load anything.
ELEMENTS = {
    *("html", "head", "meta", "title", "link", "style", "body", "header", "main", "nav", "section", "footer"),
    *("h1", "h2", "p", "div", "span", "strong", "code", "time", "ul", "li", "a"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "svg", "path", "circle"),
}


class Elements(HTMLParser):
    """The elements of a page with their attributes, its text, and whether each is closed in its order."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page.decode())
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in {"meta", "link"}:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += f"{data.strip()} "


def site(read: Callable[[], Overview], state: str = "ready", deployment: str = "prod-eu") -> Site:
    return Site(deployment, ROWS, read, lambda: state)


def page(overview: Overview, path: str = PAGE) -> Elements:
    made = site(lambda: overview)
    return Elements(made.reply(path, made.make()).body)


def hostile(value: Any) -> Any:
    """Return the same with every text replaced."""
    if isinstance(value, Enum):
        return value
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, dict):
        return dict.fromkeys([HOSTILE], *map(hostile, [*value.values()][:1]))
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(hostile, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: hostile(getattr(value, field.name)) for field in fields(value)})
    return value


@pytest.mark.parametrize("path", [PAGE, STILL, SETTINGS])
@pytest.mark.parametrize("make", [samples.fine, samples.degraded])
def test_no_text_becomes_markup_wherever_it_stands(make: Callable[[], Overview], path: str) -> None:
    rows = [Row(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, ()), ROWS[2]]
    made = Site(HOSTILE, rows, lambda: hostile(make()), lambda: "ready")

    elements = Elements(made.reply(path, made.make()).body)

    assert {name for name, _ in elements.found} <= ELEMENTS
    attributes = {name for _, found in elements.found for name in found}
    assert not [name for name in attributes if name.startswith("on") or name in {"src", "style"}]
    links = {found["href"] for name, found in elements.found if name == "a"}
    assert all(re.fullmatch(r"/|/still|/configuration|/status\.json|#[a-z]+", str(link)) for link in links)
    assert " ".join(HOSTILE.split()) in elements.text


def test_a_degraded_deployment_says_first_what_is_wrong_and_what_mends_it() -> None:
    overview = samples.degraded()
    text = page(overview).text
    assert text.index("Degraded") < text.index("5 problems") < text.index("agents-stale")
    assert text.index("periodiq app.actors") < text.index("Sweepers")
    for problem in overview.problems:
        assert problem.subject in text


def test_every_state_has_its_words() -> None:
    text = page(samples.degraded()).text
    for words in (
        *("paused until 14:43:07", "dana: migration of cluster eu-3", "overdue since 3m10s, 13:59:57"),
        *(
            "failure 13ms DeadlockDetected 40P01 4 in a row; since 14:00:57",
            "braked before it changed anything: usual",
            "Worth knowing",
        ),
        *("resting access_requests is not there", "off SB_SWEEP_SESSIONS_INTERVAL is not set"),
        *("10,000+ for 1h6m", "lock held by a stranger", "runs on sb-0:41 , 3s", "interrupted"),
        *("draining", "gone", "-4.2s", "wraps-expired every 2m", "0.1.9", "401 unauthorized", "muted until 14:28:07"),
    ):
        assert words in text, words


def test_a_fine_deployment_is_calm() -> None:
    elements = page(samples.fine())
    assert "Fine" in elements.text
    assert "Nothing needs attention." in elements.text
    assert not [
        found for _, found in elements.found if "bad" in str(found.get("class")).replace("t-bad", "bad").split()
    ]


def test_a_failed_run_has_a_mark_of_its_own_in_both_drawings() -> None:
    marks = [
        found for name, found in page(samples.degraded()).found if name == "path" and found.get("class") == "marks"
    ]
    assert [str(found["d"]).count("M") for found in marks] == [5, 5]


def test_tables_say_what_they_are_where_their_display_does_not() -> None:
    found = page(samples.degraded()).found
    roles = {"table": "table", "tr": "row", "td": "cell", "thead": "rowgroup", "tbody": "rowgroup"}
    assert {(name, attributes.get("role")) for name, attributes in found if name in roles} == set(roles.items())
    heads = {(attributes.get("scope"), attributes.get("role")) for name, attributes in found if name == "th"}
    assert heads == {("col", "columnheader"), ("row", "rowheader")}


def test_settings_are_shown_by_name_and_source_and_never_by_value() -> None:
    made = site(samples.fine)
    shown = made.make()
    for path in (PAGE, STILL, SETTINGS, JSON):
        body = made.reply(path, shown).body.decode()
        assert "to-hide" not in body
    everything = Elements(made.reply(SETTINGS, shown).body).text
    assert "DATABASE_URL set as DATABASE_URL_FILE where PostgreSQL is" in everything
    assert "SB_ENV dev or production" in everything


def test_without_postgresql_the_last_good_reading_is_shown_with_its_age() -> None:
    overview = samples.fine()
    away = replace(overview, sweepers=(), processes=(), sinks=(), verdict=Verdict.UNKNOWN)
    readings = iter([overview, away])
    made = site(lambda: next(readings))
    made.make()

    text = Elements(made.reply(PAGE, made.make()).body).text
    assert "PostgreSQL cannot be read now. What is below is as it was at" in text
    assert "Unknown" in text
    assert "wraps-expired" in text


def test_a_reading_that_fails_or_is_late_is_said_plainly_and_without_a_foreign_word() -> None:
    def fail() -> Overview:
        raise psycopg.OperationalError("connection to postgres://somebody:hidden@host failed")

    made = site(fail)
    text = Elements(made.reply(PAGE, made.make()).body).text
    assert "The overview cannot be read: OperationalError. Nothing is known yet" in text
    assert "hidden" not in text
    assert "does not answer in time" in Elements(made.reply(PAGE, made.late()).body).text
    assert made.reply(JSON, made.late()).status == 503
    assert json.loads(made.reply(JSON, made.late()).body)["current"] is False


@pytest.mark.parametrize(
    ("state", "words"), [("booting", "This process is booting"), ("draining", "This process is stopping")]
)
def test_a_process_that_boots_or_drains_says_so(state: str, words: str) -> None:
    made = site(samples.fine, state)
    assert words in Elements(made.reply(PAGE, made.make()).body).text
    assert json.loads(made.reply(JSON, made.make()).body)["process"] == state


def test_the_overview_is_there_as_json_with_the_models_names() -> None:
    made = site(samples.degraded)
    overview = json.loads(made.reply(JSON, made.make()).body)
    assert set(overview) == {field.name for field in fields(Overview)} | {"process", "current", "why_not"}
    # What `sb-worker status -o json` says.
    assert overview.items() >= json.loads(JsonWriter().text(samples.degraded())).items()
    assert overview["verdict"] == "degraded"
    wraps = overview["sweepers"][0]
    assert (wraps["interval"], wraps["backlog"]["rows"], wraps["state"]) == (60.0, 12_840, "on")
    assert set(wraps["runs"][0]) == {field.name for field in fields(RunPoint)}


def test_only_the_page_that_refreshes_itself_does() -> None:
    assert [("http-equiv" in str(page(samples.fine(), path).found)) for path in (PAGE, STILL, SETTINGS)] == [
        *(True, False, False)
    ]


def test_a_page_has_a_bound_however_much_there_is() -> None:
    overview = samples.degraded()
    huge = replace(
        hostile(overview),
        processes=overview.processes * 1000,
        sinks=overview.sinks * 1000,
        problems=tuple(replace(problem, text=HOSTILE * 1000) for problem in overview.problems * 1000),
    )
    made = site(lambda: huge)
    shown = made.make()
    assert len(made.reply(PAGE, shown).body) < 300_000
    assert len(made.reply(JSON, shown).body) < 1_000_000
    assert "more processes" in Elements(made.reply(PAGE, shown).body).text


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_text_has_the_contrast_that_wcag_aa_asks_for(scheme: int) -> None:
    block = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    texts = ("ink", "soft", "link", "ok", "warn", "bad", "busy", "off")
    pairs = [(text, ground) for text in texts for ground in ("ground", "card")]
    pairs += [(text, f"{text}-ground") for text in ("ok", "warn", "bad", "busy", "off")]
    pairs += [(text, f"{tone}-ground") for text in ("ink", "soft") for tone in ("warn", "bad", "busy")]
    pairs += [("ink", "code"), ("soft", "code")]
    for text, ground in pairs:
        darker, lighter = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)


def test_times_are_short() -> None:
    assert [span(timedelta(seconds=number)) for number in (-3, 0, 48, 133, 3600, 3661, 86_400 * 5 + 7_300)] == [
        *("0s", "0s", "48s", "2m13s", "1h", "1h1m", "5d2h")
    ]
    assert [seconds(number) for number in (-0.0004, 0.0031, 0.9999, 1.44, 12, 133, -4.2)] == [
        *("0ms", "3ms", "1.0s", "1.4s", "12s", "2m13s", "-4.2s")
    ]
