"""The guides for newcomers and operators: every sweeper and sink has its section, and what stands there is true."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from actors import SWEEPERS
from app.core import config
from app.core.events import Event, Notification, Severity
from app.notify.format import body, headline
from app.sweeping.sweeper import Sweeper
from sinks import SINKS, apprise, discord, email, pagerduty, slack, teams

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: What the sinks' examples are about.
EXAMPLE = Notification(
    "6d1f0c5e-8e0f-4b43-9f55-0c9d1b0a7b11",
    datetime(2026, 11, 23, 9, 0, tzinfo=UTC),
    Event(
        "agents-stale",
        Severity.WARN,
        "agents flagged stale (no heartbeat past cutoff)",
        "cutoff=2026-11-23T08:55:00Z",
        {"flipped": 3},
    ),
)
#: What is sent of it, as JSON; by mail and to the log it is text.
EXAMPLES: dict[str, Any] = {
    "noop": {
        "level": "WARN",
        "msg": "notification",
        "flipped": 3,
        "component": EXAMPLE.event.component,
        "title": EXAMPLE.event.title,
        "detail": EXAMPLE.event.detail,
        "event_id": EXAMPLE.id,
    },
    "webhook": body(EXAMPLE),
    "slack": slack.message(EXAMPLE),
    "pagerduty": pagerduty.message(EXAMPLE)[1],
    "teams": json.loads(teams.message(EXAMPLE)),
    "discord": discord.message(EXAMPLE),
    "apprise": apprise.message(EXAMPLE),
}
TEST = re.compile(r"`(test_\w+)`(?:[^`]*`(tests/[\w/]+\.py)`)(?: and in\s+`(tests/[\w/]+\.py)`)?")


def example(sink: str) -> tuple[str, str]:
    """Return the example of a sink as it stands in its section, with the language that it is in."""
    if sink == "email":
        mail = email.message(EXAMPLE, "worker@example.com", "ops@example.com")
        text = mail.get_body(("plain",))
        assert text is not None
        content = str(text.get_content()).replace("\r\n", "\n")
        return "text", f"Subject: {headline(EXAMPLE)}\n\n{content}".rstrip()
    return "json", json.dumps(EXAMPLES[sink], ensure_ascii=False, indent=2)


def sections(page: str) -> dict[str, str]:
    """Return the text of each section of a page by its heading."""
    parts = re.split(r"^## (.+)\n", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_sweeper_and_every_sink_has_its_section_in_their_order() -> None:
    assert list(sections("sweepers.md")) == [sweeper.name for sweeper in SWEEPERS]
    assert list(sections("sinks.md")) == [sink.name for sink in SINKS]


@pytest.mark.parametrize("sweeper", SWEEPERS, ids=lambda sweeper: str(sweeper.name))
def test_a_sweepers_section_has_its_variables_events_privileges_index_and_trial(sweeper: Sweeper[Any]) -> None:
    text = " ".join(sections("sweepers.md")[sweeper.name].split())
    own = [row for row in config.rows(sweeper.settings) if row.name.startswith("SB_SWEEP_")]
    for row in own:
        names = "<br>".join(f"`{name}`" for name in (row.name, *row.twins))
        assert f"| {names} | {'unset' if row.default in ('', 'unset') else f'`{row.default}`'} |" in text
    assert own
    for table, privileges in {**sweeper.needs, **sweeper.uses}.items():
        assert f"`{', '.join(privileges)}` on `{table}`" in text
    for title in filter(None, (sweeper.text.done, sweeper.text.warning, sweeper.text.failed)):
        assert f"| `{title}` |" in text
    assert f"| `{sweeper.text.done}` | {sweeper.text.severity.value} |" in text
    assert "**Due**: " in text
    assert "**What becomes of it**: " in text
    assert (sweeper.index is None) or f"`{sweeper.index.table}_worker_idx`" in text
    assert f"sb-worker sweep {sweeper.name} --dry-run" in text


@pytest.mark.parametrize("sink", SINKS, ids=lambda sink: str(sink.name))
def test_a_sinks_section_has_what_to_set_an_example_that_is_sent_the_answers_and_a_trial(sink: Any) -> None:
    text = sections("sinks.md")[sink.name]
    rows = {row.name: row for row in config.rows(sink.settings)}
    assert set(re.findall(rf"SB_NOTIFICATION_{sink.name.upper()}_\w+", text)) <= {
        name for row in rows.values() for name in (row.name, *row.twins)
    }
    (severity,) = [row for name, row in rows.items() if name.endswith("_MIN_SEVERITY")]
    assert f"`{severity.name}` is `{severity.default}`" in text
    language, content = example(sink.name)
    assert f"```{language}\n{content}\n```" in text
    assert sink.name == "noop" or "| answer | what becomes of it |" in text
    assert f"sb-worker notify test {sink.name}\n" in text


def test_every_test_that_is_said_to_show_something_exists() -> None:
    named = TEST.findall((DOCS / "elsewhere.md").read_text(encoding="utf-8"))
    assert len(named) > 15
    for function, *paths in named:
        for path in filter(None, paths):
            assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8"), (function, path)


def test_what_is_said_of_others_has_its_place() -> None:
    """Each row of the tables names an issue, and every number is that of its address."""
    text = (DOCS / "elsewhere.md").read_text(encoding="utf-8")
    for number, address in re.findall(r"#(\d+)\]\((https://github\.com/[^)]+)\)", text):
        assert address.rsplit("/", 1)[1] == number
    rows = [row for row in re.findall(r"^\| (?!where|---)(.+?) \|", text, re.MULTILINE) if not row.startswith("-")]
    assert all("https://github.com/" in row for row in rows)
    assert len(rows) > 20


@pytest.mark.parametrize("page", ["concepts.md", "elsewhere.md", "sweepers.md", "sinks.md"])
def test_pictures_are_ones_that_forges_draw(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    kinds = re.findall(r"^```mermaid\n(\w+)", text, re.MULTILINE)
    assert set(kinds) <= {"sequenceDiagram", "flowchart", "stateDiagram"}
    assert len(kinds) >= 3 * (page == "concepts.md")
    assert text.count("```") % 2 == 0
