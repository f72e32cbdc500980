"""`sb-worker runs` and `sb-worker verify`, as an operator types them: what is shown, and their exit statuses."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis as redis_py
from click.testing import CliRunner, Result
from psycopg import Connection
from rich.console import Console

from app.cli.history import runs
from app.cli.main import main
from app.demo.ports import reserved_port
from app.demo.servers import Redis
from app.overview.history.recent import recent
from app.overview.history.transaction import looking_back
from tests.overview.ledger import Ledger

Run = Callable[..., Result]
MINUTE = timedelta(minutes=1)
LONGEST = "cross-team-fill-window-expired"


@pytest.fixture
def run(database: str, redis_server: Redis, redis: redis_py.Redis, monkeypatch: pytest.MonkeyPatch) -> Run:
    del redis  # emptied
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("REDIS_URL", redis_server.url())
    return lambda *words: CliRunner().invoke(main, words)


@pytest.fixture
def ledger(sql: Connection[Any]) -> Ledger:
    """A ledger of two sweepers with every kind of run."""
    other = Ledger(sql, LONGEST, MINUTE)
    other.run(1500, "failure", error_class="PoolTimeout", sqlstate=None, token=None)
    other.run(7, "interrupted", changed=1_234_567, batches=3)
    own = Ledger(sql, "wraps-expired", MINUTE)
    own.run(6, covered=4, changed=12, counts={"deleted": 12})
    own.run(5, "failure", sqlstate="55P03")
    own.run(4.5, requested_by="anna")
    own.runs(4)
    return own


def listed(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_runs_come_newest_first_with_all_that_the_ledger_has(run: Run, ledger: Ledger) -> None:
    found = listed(run("runs", "-o", "json"))
    assert [row["id"] for row in found] == sorted((row["id"] for row in found), reverse=True)
    assert len(found) == 10
    (covering,) = (row for row in found if row["covered"])
    assert (covering["counts"], covering["changed"], covering["worker"]) == ({"deleted": 12}, 12, "host:1")
    assert (covering["late_seconds"], covering["took_seconds"]) == (0.01, 0.1)


def test_runs_are_chosen_by_sweeper_outcome_and_age(run: Run, ledger: Ledger) -> None:
    assert {row["name"] for row in listed(run("runs", "-o", "json", "wraps-expired"))} == {"wraps-expired"}
    assert [row["outcome"] for row in listed(run("runs", "-o", "json", "--failed"))] == [
        "failure",
        "interrupted",
        "failure",
    ]
    assert [row["outcome"] for row in listed(run("runs", "-o", "json", "--failed", "--since", "24h"))] == [
        "failure",
        "interrupted",
    ]
    assert len(listed(run("runs", "-o", "json", "--limit", "3"))) == 3
    assert listed(run("runs", "-o", "json", "sessions-expired")) == []
    for words in (["no-sweeper"], ["--since", "soon"], ["--since", "0s"], ["--limit", "0"], ["-o", "xml"]):
        assert run("runs", *words).exit_code == 2


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_table_of_runs_fits_and_says_how_each_ended(ledger: Ledger, sql: Connection[Any], width: int) -> None:
    with looking_back(sql) as cursor:
        rows = recent(cursor, None, window=None, failed=False, most=30)
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(runs.table(rows, width))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert max(map(len, lines)) <= width
    assert len(lines) == len(rows) + 1
    assert not any("…" in line[:30] for line in lines)
    for text in ("interrupted", *(("success by hand of", "success covers 4", "failure LockNotAvai") * (width >= 80))):
        assert any(text in line for line in lines), text


def test_a_wide_table_leaves_nothing_out(run: Run, ledger: Ledger) -> None:
    output = run("runs", "-o", "wide").output
    assert "failure LockNotAvailable 55P03" in output
    assert "deleted=12" in output
    assert "1,234,567" in output
    assert "host:1" in output


def test_verify_is_quiet_about_a_good_ledger_and_names_what_is_wrong(
    run: Run, ledger: Ledger, sql: Connection[Any]
) -> None:
    good = run("verify", "-o", "table")
    assert good.exit_code == 0, good.output
    assert "consistent: each of" in good.output
    sql.execute("DELETE FROM secrets_bridge_worker.sweep_run WHERE slot = %s", [ledger.slot(2)])
    bad = run("verify", "-o", "table")
    assert bad.exit_code == 1
    assert f"wraps-expired: every: slot {ledger.slot(2):%Y-%m-%d %H:%M:%S}: 1 without a run" in bad.output
    assert "1 fault in" in bad.output
    as_json = run("verify", "-o", "json")
    assert as_json.exit_code == 1
    answers = {answer["name"]: answer for answer in map(json.loads, as_json.stdout.splitlines())}
    assert answers["wraps-expired"]["faults"] == {"every": 1}
    assert answers["wraps-expired"]["wrong"][0]["slot"] == ledger.slot(2).isoformat()
    assert answers[LONGEST]["faults"] == {}


def test_verify_says_when_there_is_nothing(run: Run) -> None:
    result = run("verify", "--since", "60m", "-o", "table")
    assert result.exit_code == 0, result.output
    assert "no run in the last 1h: nothing to check" in result.output


def test_verify_needs_no_redis(run: Run, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.run(0, "running", slot=ledger.now)
    with reserved_port() as port:
        monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{port}")
        result = run("verify", "-o", "table")
    assert result.exit_code == 0, result.output
    assert "whether it is held is not known without Redis" in result.output
