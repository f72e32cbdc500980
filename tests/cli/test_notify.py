"""`sb-worker notify` and `sb-worker dead`, as an operator types them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import redis as redis_py
from psycopg import Connection
from psycopg.rows import dict_row

from app.demo.servers import Redis
from tests.support.argocd import MASTER
from tests.support.http_server import Receiver, Reply
from tests.support.processes import environment, finished
from tests.support.rows import column

LOCAL = {"SB_NOTIFICATION_ALLOWED_NETWORKS": "127.0.0.0/8"}
DEV = {"SB_ENV": "dev", "SB_WRAP_MASTER_KEY": MASTER}
Run = Callable[..., subprocess.CompletedProcess[str]]

DEAD = """
WITH event AS (
    INSERT INTO secrets_bridge_worker.notification_event (kind, component, severity, title, detail, metadata)
    SELECT 'swept', component, 'warn', 'title', '', '{"n": 1}'
      FROM unnest(ARRAY['wraps-expired', 'wraps-expired', 'agents-stale']) AS component RETURNING id
)
INSERT INTO secrets_bridge_worker.notification_delivery (event_id, target, state, reason, code, attempts, finished_at)
SELECT id, target, 'dead', 'client_error', '404', 1, now() FROM event, unnest(ARRAY['webhook', 'slack']) AS target
"""
STATES = "SELECT state || ' ' || reason FROM secrets_bridge_worker.notification_delivery ORDER BY id"


@pytest.fixture
def run(database: str, redis_server: Redis) -> Run:
    """Return a function that runs `sb-worker` with these words and variables."""

    def command(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        whole = {**environment(database, redis_server.url()), **LOCAL, **env}
        return finished(["sb-worker", *words], whole)

    return command


def objects(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_test_is_one_attempt_to_each_sink_and_shows_how_it_went(run: Run) -> None:
    with Receiver() as good, Receiver(Reply(503)) as bad:
        sinks = {"SB_NOTIFICATION_WEBHOOK_URL": good.url, "SB_NOTIFICATION_DISCORD_URL": f"{bad.url}/canary"}
        done = run("notify", "test", **sinks)
        outcomes = {record["sink"]: (record["outcome"], record["reason"], record["code"]) for record in objects(done)}
        assert outcomes == {
            "noop": ("delivered", "", ""),
            "webhook": ("delivered", "", ""),
            "discord": ("unavailable", "server_error", "503"),
        }
        assert all(record["ms"] >= 0 for record in objects(done))
        assert done.returncode == 1
        assert (len(good.seen), len(bad.seen)) == (1, 1)
        assert good.seen[0].json["component"] == "notify-test"
        assert "canary" not in done.stdout + done.stderr
        assert run("notify", "test", "webhook", **sinks).returncode == 0
        assert len(bad.seen) == 1


def test_a_test_needs_no_server_of_ours(run: Run) -> None:
    with Receiver() as good:
        nowhere = {"DATABASE_URL": "", "REDIS_URL": "", "SB_NOTIFICATION_WEBHOOK_URL": good.url}
        assert run("notify", "test", "webhook", **nowhere).returncode == 0


def test_a_sink_that_is_not_there_is_told(run: Run) -> None:
    done = run("notify", "test", "slack")
    assert (done.returncode, done.stderr) == (1, "error: slack is not configured; set SB_NOTIFICATION_SLACK_URL\n")
    done = run("notify", "test", "fax")
    assert done.returncode == 2
    assert "no sink is called 'fax'; there are: apprise, " in done.stderr


def test_explains_who_gets_an_event_and_why_not_the_others(run: Run, sql: Connection[Any]) -> None:
    sinks = {
        "SB_NOTIFICATION_WEBHOOK_URL": "https://example.org/",
        "SB_NOTIFICATION_WEBHOOK_SWEEPERS": "agents-stale",
        "SB_NOTIFICATION_DISCORD_URL": "https://example.org/",
        "SB_NOTIFICATION_TEAMS_URL": "https://example.org/",
    }
    sql.execute(
        "INSERT INTO secrets_bridge_worker.notification_target (name, failures, rests_until)"
        " VALUES ('teams', 7, '2100-01-01 12:00Z')"
    )
    found = {
        record["sink"]: (record["gets it"], record["why"]) for record in objects(run("notify", "explain", **sinks))
    }
    assert found["noop"] == ("yes", "")
    assert found["webhook"] == ("no", "its sweepers are agents-stale")
    assert found["discord"] == ("no", "quieter than its minimum, warn")
    assert found["email"] == ("no", "not configured; set SB_NOTIFICATION_EMAIL_HOST")
    warned = objects(run("notify", "explain", "--severity", "warn", **sinks))
    found = {record["sink"]: (record["gets it"], record["why"]) for record in warned}
    assert found["discord"] == ("yes", "")
    assert found["teams"] == ("later", "later: left alone until 12:00:00Z")


def test_dead_letters_are_listed_shown_replayed_and_purged(run: Run, sql: Connection[Any]) -> None:
    sql.execute(DEAD.encode())
    listed = objects(run("dead", "list"))
    assert len(listed) == 6
    assert len(objects(run("dead", "list", "--sink", "webhook", "--sweeper", "wraps-expired"))) == 2
    assert objects(run("dead", "list", "--reason", "timeout")) == []
    assert objects(run("dead", "list", "--older", "1h")) == []
    assert len(objects(run("dead", "list", "--newer", "1h"))) == 6
    (shown,) = objects(run("dead", "show", str(listed[0]["id"])))
    assert (shown["state"], shown["code"], shown["metadata"]) == ("dead", "404", {"n": 1})
    assert run("dead", "show", "999999").returncode == 1

    assert run("dead", "replay").returncode == 2
    done = run("dead", "replay", "--all", "--sink", "slack", "--rate", "0.5")
    assert done.stdout == "3 to be delivered again, over 4s\n"
    due = sql.cursor(row_factory=dict_row).execute(
        "SELECT due_at - min(due_at) OVER () AS apart FROM secrets_bridge_worker.notification_delivery"
        " WHERE state = 'pending' ORDER BY due_at"
    )
    assert [row["apart"].total_seconds() for row in due] == [0, 2, 4]
    assert run("dead", "purge", "--all", "--sweeper", "agents-stale").stdout == "1 closed\n"
    assert sorted(column(sql, STATES)) == ["dead client_error"] * 2 + ["pending "] * 3 + ["suppressed purged"]
    assert len(objects(run("notify", "log"))) == 6
    sums = {(record["target"], record["state"]): record["number"] for record in objects(run("notify", "log", "--sums"))}
    assert sums == {("slack", "pending"): 3, ("webhook", "dead"): 2, ("webhook", "suppressed"): 1}


def test_a_sweeper_that_does_not_exist_is_wrong_usage(run: Run) -> None:
    done = run("notify", "explain", "--sweeper", "nope")
    assert done.returncode == 2
    assert "no sweeper is called 'nope'" in done.stderr
    assert "wraps-expired" in done.stderr
    assert run("notify", "explain", "--sweeper", "agents-stale").returncode == 0


def test_a_replay_is_counted(run: Run, sql: Connection[Any]) -> None:
    sql.execute(DEAD.encode())
    assert run("dead", "replay", "--all", "--sink", "slack").returncode == 0
    assert {(row["target"], row["replays"]) for row in objects(run("notify", "log"))} == {("slack", 1), ("webhook", 0)}


def test_a_bad_age_is_told(run: Run) -> None:
    done = run("dead", "list", "--older", "2 days")
    assert done.returncode == 2
    assert "a Go duration" in done.stderr


def test_an_old_schema_is_told(run: Run, sql: Connection[Any]) -> None:
    sql.execute("DROP SCHEMA secrets_bridge_worker CASCADE")
    done = run("dead", "list")
    assert done.returncode == 1
    assert done.stderr == "error: the schema secrets_bridge_worker is not up to date; run `sb-worker migrate`\n"


def test_a_closed_receiver_is_told_with_what_allows_it(run: Run) -> None:
    with Receiver() as receiver:
        url = receiver.url.replace("http:", "https:").replace("127.0.0.1", "localhost") + "/canary"
        env = {"SB_NOTIFICATION_ALLOWED_NETWORKS": "10.0.0.0/8", "SB_NOTIFICATION_WEBHOOK_URL": url}
        tried = run("notify", "test", "webhook", **env)
        assert "`sb-worker check` says which setting would allow it" in tried.stderr
        checked = run("check", **env)
    assert checked.returncode == 1
    (told,) = (record for record in objects(checked) if record["subject"] == "sink webhook")
    assert told["text"].startswith("SB_NOTIFICATION_WEBHOOK_URL: its host is at ")
    assert "127.0.0.1/32" in told["text"]
    assert "canary" not in checked.stdout + tried.stdout + tried.stderr


def test_check_tells_what_of_a_sweepers_settings_is_taken_otherwise_than_it_says(run: Run) -> None:
    gitops = {"SB_WORKER_GITOPS_ENABLED": "true", **DEV, "SB_WORKER_GITOPS_HTTP_TIMEOUT": "0"}
    done = run("check", **gitops)
    told = [record["text"] for record in objects(done) if record["warning"]]
    assert "SB_WORKER_GITOPS_HTTP_TIMEOUT: 0 means 15s, as in the Go worker; no request may go on for ever" in told
    assert done.returncode == 0


def test_check_tells_of_a_sink_that_is_off_and_of_a_queue_that_nobody_serves(
    run: Run, sql: Connection[Any], redis: redis_py.Redis
) -> None:
    sql.execute(
        "INSERT INTO secrets_bridge_worker.notification_target (name, off_fingerprint, off_reason, off_at)"
        " VALUES ('slack', 'x', 'auth', now())"
    )
    redis.rpush("dramatiq:sinks", *range(1001))
    done = run("check", SB_NOTIFICATION_WEBHOOK_URL="https://example.org/canary")
    found = {record["subject"]: record["text"] for record in objects(done)}
    assert found["sinks"] == "noop, webhook"
    assert found["sink slack"].startswith("switched off (auth) until its configuration changes")
    assert found["queue sinks"].startswith("1001 messages wait")
    assert "canary" not in done.stdout + done.stderr
    assert done.returncode == 0


OFF = """
INSERT INTO secrets_bridge_worker.notification_target (name, off_fingerprint, off_reason, off_at)
SELECT name, 'x', 'auth', now() FROM unnest(ARRAY['webhook', 'slack']) AS name
"""
STILL_OFF = "SELECT name FROM secrets_bridge_worker.notification_target WHERE off_fingerprint IS NOT NULL ORDER BY name"


def test_a_sink_is_switched_on_by_hand_or_by_a_test_that_it_takes(run: Run, sql: Connection[Any]) -> None:
    sql.execute(OFF)
    with Receiver(Reply(401)) as receiver:
        sinks = {"SB_NOTIFICATION_WEBHOOK_URL": receiver.url}
        assert run("notify", "test", "webhook", **sinks).returncode == 1
        assert column(sql, STILL_OFF) == ["slack", "webhook"]
        receiver.answer = Reply(200)
        assert "webhook is switched on again" in run("notify", "test", "webhook", **sinks).stderr
    assert column(sql, STILL_OFF) == ["slack"]
    assert "slack is switched on again" in run("notify", "enable", "slack").stderr
    assert column(sql, STILL_OFF) == []
    done = run("notify", "enable", "slack")
    assert (done.returncode, done.stderr.startswith("error: slack is not switched off")) == (1, True)


def test_a_replay_to_a_sink_that_is_off_says_so(run: Run, sql: Connection[Any]) -> None:
    sql.execute(DEAD.encode())
    sql.execute(OFF)
    done = run("dead", "replay", "--all", "--sink", "slack")
    assert done.stdout == "3 to be delivered again, over 2s\n"
    assert done.stderr.startswith(
        "warning: slack is switched off (auth): they wait until `sb-worker notify enable slack`"
    )


def test_what_is_held_is_told_and_until_when(run: Run, sql: Connection[Any]) -> None:
    sql.execute(DEAD.encode())
    sql.execute(
        "UPDATE secrets_bridge_worker.notification_delivery SET state = 'pending', finished_at = NULL, attempts = 0,"
        " due_at = '2100-01-01 12:00Z' WHERE target = 'webhook'"
    )
    assert {one["waits"] for one in objects(run("notify", "log", "--sink", "webhook"))} == {"held until 12:00:00Z"}
    assert {one["waits"] for one in objects(run("notify", "log", "--sink", "slack"))} == {""}
    sql.execute(
        "INSERT INTO secrets_bridge_worker.notification_hold"
        " VALUES ('noop', 'wraps-expired|swept|info|expired wraps purged', '2100-01-01 12:00Z')"
    )
    found = {one["sink"]: (one["gets it"], one["why"]) for one in objects(run("notify", "explain"))}
    assert found["noop"] == ("later", "later, if equal to one that was sent: those are held until 12:00:00Z")
