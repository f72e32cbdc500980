"""Every kind of problem, made of an overview that is well by one change, with what mends it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.fleet.processes import Process
from app.overview import verdict
from app.overview.model import (
    Blocker,
    Holder,
    Overview,
    Problem,
    RunPoint,
    ServerView,
    SinkView,
    State,
    SweeperView,
    Verdict,
)
from app.sweeping.scans.due import Backlog

NOW = datetime(2026, 11, 26, 9, 0, tzinfo=UTC)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
NAMES = ("wraps-expired", "agents-stale")
CADENCES = dict.fromkeys(NAMES, MINUTE)


def ago(length: timedelta) -> datetime:
    return NOW - length


def process(kind: str, **more: Any) -> Process:
    queues = {"scheduler": [], "worker": ["sweeps"], "notifier": ["sinks"]}[kind]
    known: dict[str, Any] = {"ticked_at": ago(SECOND) if kind == "scheduler" else None, "alive": True, "queues": queues}
    known |= {"deployment": "test", "host": "host", "pid": 1, "version": "1.0", "started_at": ago(HOUR)}
    known |= {"seen_at": ago(SECOND), "ended_at": None, "draining": False, "clock_ahead": timedelta(0)}
    return Process(kind=kind, **{**known, "cadences": CADENCES, "off": {}, **more})


def gone(kind: str) -> Process:
    return process(kind, alive=False, seen_at=ago(50 * SECOND), ticked_at=ago(55 * SECOND))


FLEET = tuple(process(kind) for kind in ("notifier", "scheduler", "worker"))
RUN = RunPoint(ago(30 * SECOND), ago(30 * SECOND), "success", 0.01, 3, 0.005, "host:1")


def sweeper(name: str = "wraps-expired", **more: Any) -> SweeperView:
    known: dict[str, Any] = {"state": State.ON, "reason": "", "since": None, "until": None, "runs": (RUN,)}
    known |= {"next_tick": NOW + MINUTE, "last_success": RUN.started_at, "overdue_since": None, "holder": None}
    known |= {"backlog": None, "failures": 0, "failing_since": None, "own_interval": MINUTE}
    return SweeperView(name=name, interval=MINUTE, **{**known, **more})


def sink(**more: Any) -> SinkView:
    return replace(SinkView("slack", "on", "", None, 0, None, 0), **more)


POSTGRES, REDIS = ServerView("postgres", "", "17.2"), ServerView("redis", "", "7.2.4")
WELL = Overview("test", NOW, tuple(map(sweeper, NAMES)), FLEET, (sink(),), (POSTGRES, REDIS))


def without(kind: str, *others: Process) -> Overview:
    return replace(WELL, processes=(*(one for one in FLEET if one.kind != kind), *others))


def one(**more: Any) -> Overview:
    return replace(WELL, sweepers=(sweeper(**more), sweeper("agents-stale")))


def failing(error: str, sqlstate: str = "", **more: Any) -> Overview:
    return one(failures=3, failing_since=ago(MINUTE), error=f"{error} {sqlstate}".strip(), sqlstate=sqlstate, **more)


def paused(length: timedelta) -> Overview:
    return one(state=State.PAUSED, since=ago(length), until=NOW + HOUR, reason="ann: a migration")


STRANGER = Holder("", ago(40 * SECOND), 9 * SECOND)
BLOCKER = Blocker("secret_wraps", 4711, "idle in transaction", 5 * MINUTE, own_role=False)
PREPARED = Blocker("secret_wraps", 0, "", None, own_role=False)

#: What an overview is, the subject of its first problem, what that says, and what is to be done.
CASES: dict[str, tuple[Overview, str, str, str]] = {
    "postgres": (
        replace(WELL, servers=(ServerView("postgres", "read_only", "17.2", "a standby, which takes no writes"), REDIS)),
        "PostgreSQL",
        "a standby, which takes no writes",
        "let DATABASE_URL lead to the primary",
    ),
    "redis": (
        replace(WELL, servers=(POSTGRES, ServerView("redis", "OOM", "", "the server refuses us (OOM)"))),
        "Redis",
        "the server refuses us (OOM)",
        "give Redis more memory",
    ),
    "no scheduler": (
        without("scheduler", gone("scheduler")),
        "scheduler",
        "none is alive, for 50s now; the last tick was sent 55s ago",
        "`periodiq app.actors`",
    ),
    "no scheduler ever": (without("scheduler"), "scheduler", "none is alive; no tick is known of", "`sb-worker run`"),
    "no worker": (without("worker", gone("worker")), "worker", "none is alive, for 50s now", "--queues sweeps"),
    "no notifier": (without("notifier"), "notifier", "nobody is notified but by the log", "--queues sinks"),
    "no ticks": (
        without("scheduler", process("scheduler", ticked_at=ago(10 * MINUTE))),
        "scheduler",
        "alive, and has sent no tick for 10m",
        "`sb-worker check`",
    ),
    "overdue": (
        one(overdue_since=ago(50 * SECOND)),
        "wraps-expired",
        "nobody runs it, overdue by 50s",
        "`sb-worker why wraps-expired`",
    ),
    "overdue by a lock of its table": (
        one(overdue_since=ago(50 * SECOND), blockers=(BLOCKER,)),
        "wraps-expired",
        "overdue by 50s; secret_wraps is held",
        "see below by whom",
    ),
    "a stranger's lock": (
        one(overdue_since=ago(50 * SECOND), holder=STRANGER),
        "wraps-expired",
        "its lock is held for 40s by somebody who is no run of ours, and runs out in 9s unless renewed; overdue by 50s",
        "`sb-worker unlock wraps-expired`",
    ),
    "a run that does not end": (
        one(overdue_since=ago(50 * SECOND), holder=Holder("host:7", ago(2 * MINUTE), 3 * SECOND)),
        "wraps-expired",
        "its run in host:7 has not ended for 2m; overdue by 50s",
        "see that process's log",
    ),
    "no privilege": (
        failing("InsufficientPrivilege", "42501"),
        "wraps-expired",
        "fails (InsufficientPrivilege 42501), 3 in a row, for 1m",
        "`sb-worker check` prints the GRANT",
    ),
    "locked out": (
        failing("LockNotAvailable", "55P03"),
        "wraps-expired",
        "fails (LockNotAvailable 55P03)",
        "see who held its table",
    ),
    "locked out by somebody": (
        replace(failing("LockNotAvailable", "55P03", blockers=(BLOCKER,)), blockers=(BLOCKER,)),
        "wraps-expired",
        "fails (LockNotAvailable 55P03)",
        "secret_wraps is held: see below by whom",
    ),
    "who holds a table": (
        replace(WELL, blockers=(BLOCKER,)),
        "secret_wraps",
        "is held by a session of another role (pid 4711, idle in transaction, its transaction 5m old)",
        "SELECT pg_terminate_backend(4711)",
    ),
    "a prepared transaction": (
        replace(WELL, blockers=(PREPARED,)),
        "secret_wraps",
        "is held by a prepared transaction",
        "ROLLBACK PREPARED",
    ),
    "the api's table": (failing("UndefinedTable", "42P01"), "wraps-expired", "fails", "the api's migration brings it"),
    "postgres was away": (failing("PoolTimeout"), "wraps-expired", "fails (PoolTimeout)", "PostgreSQL was away"),
    "another error": (failing("PartlyFailed"), "wraps-expired", "fails", "`sb-worker why wraps-expired`"),
    "cadences": (
        without("scheduler", process("scheduler", host="web", cadences={**CADENCES, "wraps-expired": 30 * SECOND})),
        "wraps-expired",
        "processes disagree how often: 1m in notifier host:1, worker host:1; 30s in scheduler web:1",
        "the same SB_SWEEP_* variables",
    ),
    "off in some": (
        without("worker", process("worker", cadences={"agents-stale": MINUTE}, off={"wraps-expired": "SB_X"})),
        "wraps-expired",
        "off in worker host:1",
        "the same SB_SWEEP_* variables",
    ),
    "a clock ahead": (
        replace(WELL, processes=(*FLEET, process("worker", host="web", clock_ahead=10 * MINUTE))),
        "clock of web",
        "is 10m ahead of PostgreSQL's (worker)",
        "NTP",
    ),
    "a clock behind": (
        replace(WELL, processes=(*FLEET, process("worker", host="web", clock_ahead=-3 * SECOND))),
        "clock of web",
        "is 3s behind PostgreSQL's (worker)",
        "NTP",
    ),
    "braked": (
        one(state=State.BRAKED, reason="too_many_rows", since=ago(HOUR)),
        "wraps-expired",
        "stopped 1h ago before it changed anything (too_many_rows)",
        "`sb-worker sweep wraps-expired --approve`",
    ),
    "braked, and failing": (
        failing("InsufficientPrivilege", "42501", state=State.BRAKED, reason="too_many_rows", since=ago(HOUR)),
        "wraps-expired",
        "fails (InsufficientPrivilege",
        "`sb-worker check` prints the GRANT that is missing",
    ),
    "a pause that is forgotten": (
        paused(2 * HOUR),
        "wraps-expired",
        "paused for 2h, for another 1h (ann: a migration); is it forgotten?",
        "`sb-worker resume wraps-expired`",
    ),
    "a backlog": (
        one(backlog=Backlog(10_000, ago(5 * MINUTE), more=True)),
        "wraps-expired",
        "more than 10,000 rows are due, the oldest for 5m",
        "SB_WORKER_SWEEP_BUDGET",
    ),
    "a sink that is off": (
        replace(WELL, sinks=(sink(state="off", reason="auth", waiting=12),)),
        "sink slack",
        "is switched off (auth); 12 wait for it",
        "`sb-worker notify enable slack`",
    ),
    "a sink that fails": (replace(WELL, sinks=(sink(state="resting"),)), "sink slack", "fails", "notify test slack"),
    "deliveries late": (
        replace(WELL, sinks=(sink(waiting=3, due_since=ago(2 * MINUTE)),)),
        "sink slack",
        "is late by 2m; 3 wait for it",
        "a notifier",
    ),
    "dead letters": (replace(WELL, sinks=(sink(dead=4),)), "sink slack", "has 4 dead letters", "`sb-worker dead list"),
    "long passes": (
        one(runs_a_pass=90),
        "wraps-expired",
        "reads its large table in 90 runs, 1h30m in all, for want of an index",
        "`sb-worker check` prints the index",
    ),
    "what could not be read": (
        replace(WELL, problems=(Problem("sinks", "cannot be read: X", "do this"),), unread=frozenset({"sinks"})),
        "sinks",
        "cannot be read: X",
        "do this",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_problem_is_found_with_what_mends_it(case: tuple[Overview, str, str, str]) -> None:
    overview, subject, text, remedy = case
    judged = verdict.judge(overview)
    first = judged.problems[0]
    assert judged.verdict is Verdict.DEGRADED
    assert (first.subject, first.note) == (subject, False)
    assert text in first.text
    assert remedy in first.remedy


def test_what_is_well_is_fine() -> None:
    judged = verdict.judge(WELL)
    assert (judged.verdict, judged.problems) == (Verdict.FINE, ())


NOTES: dict[str, tuple[Overview, str]] = {
    "a pause": (paused(MINUTE), "paused for 1m, for another 1h (ann: a migration)"),
    "short passes": (one(runs_a_pass=2), "reads its large table in 2 runs, 2m in all"),
    "versions": (replace(WELL, processes=(*FLEET, process("worker", version="2.0"))), "several run: 1.0, 2.0"),
    "another environment": (one(own_interval=HOUR), "the processes have other settings than this command"),
    "off in another environment": (one(own_interval=None), "the processes have other settings than this command"),
    "nobody but the log": (replace(without("notifier"), sinks=(sink(name="log"),)), "none is alive"),
}


@pytest.mark.parametrize("case", NOTES.values(), ids=NOTES)
def test_what_is_only_worth_to_be_known_leaves_all_fine(case: tuple[Overview, str]) -> None:
    overview, text = case
    judged = verdict.judge(overview)
    assert judged.verdict is Verdict.FINE
    assert [problem.note for problem in judged.problems] == [True]
    assert text in judged.problems[0].text


QUIET: dict[str, Overview] = {
    "a clock that is a little off": replace(WELL, processes=(*FLEET, process("worker", clock_ahead=-2 * SECOND))),
    "a dead replica beside a living one": replace(WELL, processes=(*FLEET, gone("scheduler"), gone("worker"))),
    "one process for everything": replace(
        WELL, processes=(process("scheduler"), process("worker", queues=["sweeps", "sinks"]))
    ),
    "a lock of a run that is about to begin": one(holder=Holder("", None, SECOND)),
    "rows that have just become due": one(backlog=Backlog(5, ago(MINUTE))),
    "a muted sink": replace(WELL, sinks=(sink(state="muted", until=NOW + HOUR, waiting=3, due_since=ago(HOUR)),)),
    "a sweeper that is off": one(state=State.OFF, reason="SB_X", own_interval=None, runs=()),
}


@pytest.mark.parametrize("overview", QUIET.values(), ids=QUIET)
def test_what_is_as_it_should_be_is_no_problem(overview: Overview) -> None:
    assert verdict.judge(overview).problems == ()


def test_what_follows_from_a_cause_is_told_after_it_and_once() -> None:
    owing = tuple(sweeper(name, overdue_since=ago(MINUTE)) for name in NAMES)
    judged = verdict.judge(replace(without("scheduler"), sweepers=owing))
    assert [problem.subject for problem in judged.problems] == ["scheduler", "wraps-expired, agents-stale"]
    assert judged.problems[1].remedy == "follows from what stands above; it ends by itself"


def test_sweepers_that_fail_alike_are_one_problem() -> None:
    alike = tuple(sweeper(name, failures=2, error="PoolTimeout", failing_since=ago(MINUTE)) for name in NAMES)
    judged = verdict.judge(replace(WELL, sweepers=alike))
    assert [problem.subject for problem in judged.problems] == ["wraps-expired, agents-stale"]


def test_without_sweepers_nothing_can_be_told_and_nobody_is_called_dead() -> None:
    gone_away = ServerView("postgres", "unreachable", "", "the connection is refused")
    judged = verdict.judge(Overview("", NOW, (), (), (), (gone_away, REDIS)))
    assert judged.verdict is Verdict.UNKNOWN
    assert [problem.subject for problem in judged.problems] == ["PostgreSQL"]


def test_processes_that_could_not_be_read_are_not_called_dead() -> None:
    unread = replace(WELL, processes=(), unread=frozenset({"processes"}))
    assert verdict.judge(unread).problems == ()
