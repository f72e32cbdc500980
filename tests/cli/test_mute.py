"""`sb-worker notify mute` and `unmute`, as an operator types them."""

from __future__ import annotations

import re
from typing import Any

from psycopg import Connection

from tests.cli.test_notify import DEAD, Run, objects, run  # noqa: F401 - a fixture
from tests.support.rows import rows

HOOK = {"SB_NOTIFICATION_WEBHOOK_URL": "https://example.org/canary"}
TARGETS = """
SELECT name, muted_by, muted_reason, muted_until - muted_at AS length FROM secrets_bridge_worker.notification_target
"""


def test_a_mute_is_written_down_shown_and_ended(run: Run, sql: Connection[Any]) -> None:  # noqa: F811 - the fixture
    done = run("notify", "mute", "webhook", "--for", "1h30m", "--reason", "a planned change", **HOOK)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"webhook is muted until \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ; what is for it waits, and goes as one message then\n",
        done.stdout,
    )
    (row,) = rows(sql, TARGETS)
    assert (row["name"], row["muted_reason"], row["length"].total_seconds()) == ("webhook", "a planned change", 5400)
    assert re.fullmatch(r"[^@]+@[^@]+", row["muted_by"])
    (explained,) = [one for one in objects(run("notify", "explain", **HOOK)) if one["sink"] == "webhook"]
    assert explained["gets it"] == "later"
    assert re.fullmatch(rf"later: muted until .*Z by {re.escape(row['muted_by'])}: a planned change", explained["why"])
    sql.execute(DEAD.encode())
    sql.execute("UPDATE secrets_bridge_worker.notification_delivery SET state = 'pending', finished_at = NULL")
    waits = {one["target"]: one["waits"] for one in objects(run("notify", "log", **HOOK))}
    assert waits["webhook"].startswith("muted until ")
    assert waits["webhook"].endswith(f"by {row['muted_by']}: a planned change")
    assert waits["slack"] == "due"

    assert run("notify", "unmute", "webhook").stdout == "webhook is not muted any more; what waited for it goes out\n"
    (explained,) = [one for one in objects(run("notify", "explain", **HOOK)) if one["sink"] == "webhook"]
    assert explained["gets it"] == "yes"
    done = run("notify", "unmute", "webhook")
    assert (done.returncode, done.stderr.startswith("error: webhook is not muted")) == (1, True)


def test_a_replay_to_a_muted_sink_says_so(run: Run, sql: Connection[Any]) -> None:  # noqa: F811 - the fixture
    sql.execute(DEAD.encode())
    hook = {"SB_NOTIFICATION_SLACK_URL": "https://example.org/canary"}
    assert run("notify", "mute", "slack", "--for", "1h", **hook).returncode == 0
    told = run("dead", "replay", "--all").stderr
    assert re.fullmatch(r"warning: slack is muted: they wait until .*Z, or `sb-worker notify unmute slack`\n", told)


def test_a_sink_of_another_replica_may_be_muted(run: Run, sql: Connection[Any]) -> None:  # noqa: F811 - the fixture
    sql.execute("INSERT INTO secrets_bridge_worker.notification_target (name) VALUES ('teams')")
    assert run("notify", "mute", "teams", "--for", "1m").returncode == 0


def test_what_makes_no_sense_is_refused(run: Run, sql: Connection[Any]) -> None:  # noqa: F811 - the fixture
    for words, status, told in (
        (("fax", "--for", "1h"), 2, "no sink is called 'fax'; there are: apprise, discord, email, noop"),
        (("slack", "--for", "1h"), 1, "error: slack is not configured; set SB_NOTIFICATION_SLACK_URL"),
        (("noop", "--for", "1h"), 2, "noop reaches nobody: it is the log"),
        (("webhook",), 2, "Missing option '--for'"),
        (("webhook", "--for", "a while"), 2, "a Go duration"),
        (("webhook", "--for", "0s"), 2, "must be more than 0"),
        (("webhook", "--for", "721h"), 2, "at most 720h"),
        (("webhook", "--for", "1h", "--reason", "two\nlines"), 2, "printable characters"),
    ):
        done = run("notify", "mute", *words, **HOOK)
        assert done.returncode == status, words
        assert told in done.stderr, words
    assert rows(sql, TARGETS) == []
