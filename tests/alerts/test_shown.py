"""The dashboard and the runbooks: whole, about what exists, and in step with the rules."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from prometheus_client import REGISTRY

from app.cli.main import main
from app.core import metrics
from app.demo.ports import reserved_port
from app.demo.servers import Redis
from tests.alerts import rules
from tests.support.packages import program
from tests.support.processes import QUICK, Process, environment
from tests.support.waiting import HUNG_PROCESS, eventually

METRIC = re.compile(r"\b(?:worker|process|dramatiq)_[a-z_]+\b")
#: What comes with a histogram's name.
PARTS = ("_bucket", "_count", "_sum")
RUNBOOKS = sorted(page for page in rules.RUNBOOKS.glob("*.md") if page.name != "README.md")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(rules.DASHBOARD.read_text(encoding="utf-8"))
    return found


def panels() -> list[dict[str, Any]]:
    """Return those that show something, without the rows between them."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[str]:
    """Return every expression of the dashboard, with values for its variables."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    found += [known["expr"] for known in dashboard()["annotations"]["list"] if "expr" in known]
    return [
        re.sub(r"\$(deployment|instance|task|sink)\b", ".*", expr).replace("$__rate_interval", "1m") for expr in found
    ]


def named(text: str) -> set[str]:
    """Return the metrics that a text names; of a histogram's parts the histogram."""
    return {re.sub(rf"({'|'.join(PARTS)})$", "", name) for name in METRIC.findall(text)}


def families(text: str) -> set[str]:
    """Return the names of an exposition's families, as queries name them."""
    return {name for name, _ in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)}


@pytest.fixture
def exposed(database: str, redis_server: Redis, redis: redis_py.Redis, tmp_path: Path) -> set[str]:
    """Return the metrics that a replica shows, and those that are made when something happens."""
    with reserved_port() as port:
        env = environment(database, redis_server.url(), **QUICK, SB_NOTIFICATION_LOCAL_ADDR=f"127.0.0.1:{port}")
        with Process(("sb-worker", "run"), env, tmp_path / "replica.log") as replica:
            replica.ready()
            text = eventually(lambda: (shown := replica.get("/metrics")).is_success and shown.text)
    metrics.poll_seconds()
    made = {f"{family.name}_total" if family.type == "counter" else family.name for family in REGISTRY.collect()}
    return families(text) | made


def test_every_metric_of_rules_and_dashboard_exists(exposed: set[str]) -> None:
    used = named(rules.text()) | named(" ".join(queries()))
    assert used - exposed == set()
    assert len(used) > 40


def test_every_metric_that_runbooks_name_is_one_of_those(exposed: set[str]) -> None:
    for page in rules.RUNBOOKS.glob("*.md"):
        assert named(page.read_text(encoding="utf-8")) - exposed == set(), page.name


def test_every_query_of_the_dashboard_is_one(tmp_path: Path) -> None:
    group = {"name": "dashboard", "rules": [{"record": f"q:{n}", "expr": expr} for n, expr in enumerate(queries())]}
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [group]}), encoding="utf-8")
    done = subprocess.run(
        [program("promtool", rules.PACKAGE), "check", "rules", "rules.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=HUNG_PROCESS,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboards_panels_have_ids_of_their_own_and_lie_side_by_side() -> None:
    every = dashboard()["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    for one, other in combinations([panel["gridPos"] for panel in every], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in every)


def test_each_panel_says_what_it_shows_and_asks_the_source_that_is_chosen() -> None:
    for panel in panels():
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


def test_the_dashboard_has_its_rows_and_variables() -> None:
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert rows == ["Verdict", "Sweeps", "Notifications", "GitOps polls", "Replicas", "Locks and slots"]
    variables = [variable["name"] for variable in dashboard()["templating"]["list"]]
    assert variables == ["datasource", "deployment", "instance", "task", "sink"]


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    assert {page.stem for page in RUNBOOKS} == set(rules.alerts())


@pytest.mark.parametrize("page", RUNBOOKS, ids=lambda page: str(page.stem))
def test_a_page_says_what_it_is_how_to_find_it_how_to_mend_it_and_what_it_is_not(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE) == [
        page.stem,
        "What it means",
        "Find it",
        "Mend it",
        "For good",
        "What it is not",
    ]
    (severity,) = re.findall(r"^Severity: \*\*(\w+)\*\*", text, re.MULTILINE)
    assert f"severity: {severity}\n" in rules.alerts()[page.stem]
    find = text.partition("## Find it")[2].partition("## Mend it")[0]
    assert "```sh\n" in find


def test_the_list_of_runbooks_has_each() -> None:
    listed = re.findall(
        r"^\| \[(\w+)\]\((\w+)\.md\) \| (\w+) \|", (rules.RUNBOOKS / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert {page for _, page, _ in listed} == set(rules.alerts())
    for name, page, severity in listed:
        assert page == f"{rules.PREFIX}{name}"
        assert f"severity: {severity}\n" in rules.alerts()[page]


def test_every_command_of_rules_and_runbooks_exists() -> None:
    text = rules.text() + "".join(page.read_text(encoding="utf-8") for page in rules.RUNBOOKS.glob("*.md"))
    asked = {tuple(words.split()) for words in re.findall(r"\bsb-worker ([a-z]+(?: [a-z]+)?)", text)}
    missing = set()
    for words in asked:
        command = main.commands.get(words[0])
        if command is None:
            missing.add(words[0])
        elif (below := getattr(command, "commands", None)) is not None and words[1] not in below:
            missing.add(" ".join(words))
    assert missing == set()
