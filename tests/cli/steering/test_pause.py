"""`sb-worker pause` and `resume`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from psycopg import Connection

from actors import SWEEPERS
from tests.cli.steering.conftest import Run
from tests.support.rows import column, rows

PAUSES = "SELECT * FROM secrets_bridge_worker.sweeper_pause ORDER BY id"
WHY = ("--for", "2h", "--reason", "the import of team blue")


def test_it_is_paused_listed_and_resumed(run: Run, sql: Connection[Any]) -> None:
    done = run("pause", "wraps-expired", *WHY)
    (row,) = rows(sql, PAUSES)
    until = f"{row['until']:%Y-%m-%d %H:%M:%SZ}"
    assert done.stdout == (f"wraps-expired is paused until {until}; `sb-worker resume wraps-expired` ends that\n")
    assert "@" in row["paused_by"]
    (listed,) = map(json.loads, run("pause").stdout.splitlines())
    assert (listed["name"], listed["reason"], listed["paused_by"]) == (
        *("wraps-expired", "the import of team blue"),
        row["paused_by"],
    )
    assert run("resume", "wraps-expired").stdout == "wraps-expired runs again from its next tick on\n"
    assert run("pause").stdout == ""
    again = run("resume", "wraps-expired")
    assert (again.returncode, again.stderr) == (1, "error: wraps-expired is not paused\n")


def test_all_of_them_at_once(run: Run, sql: Connection[Any]) -> None:
    assert len(run("pause", "all", *WHY).stdout.splitlines()) == len(SWEEPERS)
    assert column(sql, "SELECT count(DISTINCT name) FROM secrets_bridge_worker.sweeper_pause") == [len(SWEEPERS)]
    listed = [json.loads(line)["name"] for line in run("pause", "--json").stdout.splitlines()]
    assert listed == [sweeper.name for sweeper in SWEEPERS]
    assert len(run("resume", "all").stdout.splitlines()) == len(SWEEPERS)
    assert run("resume", "all").stderr == "error: no sweeper is paused\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("wraps-expired", "--for", "2h"), "needs --for and --reason"),
        (("wraps-expired", "--reason", "x"), "needs --for and --reason"),
        (("--for", "2h", "--reason", "x"), "which sweeper"),
        (("wraps-expired", "--for", "721h", "--reason", "x"), "at most 720h"),
        (("wraps-expired", "--for", "0s", "--reason", "x"), "more than 0"),
        (("wraps-expired", "--for", "2 hours", "--reason", "x"), "a Go duration"),
        (("wraps-expired", "--for", "2h", "--reason", " "), "printable characters"),
        (("wraps-expired", "--for", "2h", "--reason", "x" * 201), "printable characters"),
        (("wraps-expired", "--for", "2h", "--reason", "a\x1b[31mb"), "printable characters"),
        (("wraps-expired", "--for", "2h", "--reason", "a\nb"), "printable characters"),
        (("nobody", *WHY), "no sweeper is called"),
    ],
)
def test_what_is_wrong_is_told(run: Run, sql: Connection[Any], words: tuple[str, ...], told: str) -> None:
    done = run("pause", *words)
    assert done.returncode == 2
    assert told in done.stderr
    assert rows(sql, PAUSES) == []


def test_an_old_schema_is_told(run: Run, sql: Connection[Any]) -> None:
    sql.execute("DROP SCHEMA secrets_bridge_worker CASCADE")
    for words in (("pause",), ("resume", "all"), ("sweep", "wraps-expired"), ("sweep", "wraps-expired", "--dry-run")):
        done = run(*words)
        assert done.returncode == 1
        assert done.stderr == "error: the schema secrets_bridge_worker is not up to date; run `sb-worker migrate`\n"
