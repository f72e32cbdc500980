"""Overviews to show: one where all is well, one where much is wrong, and one whose every text is hostile."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from app.fleet.processes import Process
from app.overview.model import (
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

NOW = datetime(2026, 3, 4, 14, 3, 7, tzinfo=UTC)
CADENCES = {
    "wraps-expired": 60,
    "secrets-stale": 300,
    "agents-stale": 60,
    "jobs-recovery": 30,
    "discover-scheduler": 30,
    "discover-stuck": 60,
    "reveal-sessions-expired": 5,
    "cross-team-fill-window-expired": 30,
    "gitops-poller": 15,
    "gitops-timeout": 60,
    "sessions-expired": 3600,
}
SERVERS = (ServerView("postgres", "", "16.4"), ServerView("redis", "", "7.2.5"))


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def run(number: int, interval: int, *, outcome: str = "success", error: str = "") -> RunPoint:
    """Return a run that began so many intervals ago; its numbers follow from that."""
    slot = ago(number * interval + 7)
    late, changed = 0.004 + number * 37 % 11 / 1000, number * number * 31 % 97
    return RunPoint(slot, slot + timedelta(seconds=late), outcome, late, changed, 0.013, "sb-0:41", error=error)


def sweeper(name: str, interval: int) -> SweeperView:
    return SweeperView(
        name=name,
        interval=timedelta(seconds=interval),
        state=State.ON,
        reason="",
        since=None,
        until=None,
        next_tick=NOW + timedelta(seconds=interval * 0.4),
        runs=tuple(run(number, interval) for number in range(60, 0, -1)),
        last_success=ago(interval * 0.6),
        overdue_since=None,
        holder=None,
        backlog=Backlog(0, None),
        failures=0,
        failing_since=None,
    )


def process(kind: str, host: str, pid: int) -> Process:
    cadences = {name: timedelta(seconds=interval) for name, interval in CADENCES.items()}
    ticked_at = ago(2) if kind == "scheduler" else None
    queues = {"worker": ("sweeps",), "notifier": ("sinks",)}.get(kind, ())
    return Process(
        kind, queues, "prod-eu", host, pid, "0.2.0", ago(86_400 * 3 + 4_000), ago(2), None, draining=False,
        clock_ahead=timedelta(milliseconds=3), cadences=cadences, off={}, ticked_at=ticked_at, alive=True,
    )  # fmt: skip


def fine() -> Overview:
    """Return an overview of a deployment without a problem."""
    hosts = ("sb-worker-6f9c7d-k2xvq", "sb-worker-6f9c7d-zz81p")
    found = [
        process(kind, host, 41 + at) for host in hosts for at, kind in enumerate(("worker", "notifier", "scheduler"))
    ]
    sinks = tuple(SinkView(name, "on", "", None, 0, None, 0) for name in ("noop", "slack", "email:3f9a"))
    sweepers = tuple(sweeper(name, interval) for name, interval in CADENCES.items())
    return Overview("prod-eu", NOW, sweepers, tuple(found), sinks, SERVERS, verdict=Verdict.FINE)


def degraded() -> Overview:
    """Return one in which every kind of state is there at least once."""
    base = fine()
    changes: dict[str, dict[str, object]] = {
        "wraps-expired": {
            "backlog": Backlog(12_840, ago(222)),
            "holder": Holder("sb-0:41", ago(3), timedelta(seconds=3)),
        },
        "secrets-stale": {
            "state": State.PAUSED,
            "reason": "dana: migration of cluster eu-3",
            "until": NOW + timedelta(minutes=40),
        },
        "agents-stale": {"overdue_since": ago(190), "backlog": Backlog(10_000, ago(4_000), more=True)},
        "jobs-recovery": {"failures": 4, "failing_since": ago(130)},
        "discover-stuck": {
            "state": State.BRAKED,
            "reason": "usual",
            "backlog": Backlog(8_120, ago(600)),
        },
        "cross-team-fill-window-expired": {
            "state": State.RESTING,
            "reason": "access_requests",
            "runs": (),
            "backlog": None,
        },
        "gitops-poller": {"holder": Holder("", None, timedelta(seconds=90)), "backlog": None},
        "sessions-expired": {
            "state": State.OFF,
            "reason": "SB_SWEEP_SESSIONS_INTERVAL",
            "runs": (),
            "backlog": None,
        },
    }
    sweepers = [replace(view, **changes.get(view.name, {})) for view in base.sweepers]  # type: ignore[arg-type]
    failing = {1: "failure", 2: "failure", 3: "failure", 4: "failure", 30: "interrupted"}
    runs = tuple(
        run(at, 30, outcome=failing.get(at, "success"), error="DeadlockDetected 40P01" if at < 5 else "")
        for at in range(60, 0, -1)
    )
    sweepers[3] = replace(sweepers[3], runs=runs)
    processes = [*base.processes]
    processes[3] = replace(
        processes[3], version="0.1.9", cadences={**processes[3].cadences, "wraps-expired": timedelta(minutes=2)}
    )
    processes[4] = replace(processes[4], alive=False, seen_at=ago(300))
    processes[5] = replace(processes[5], clock_ahead=timedelta(seconds=-4.2), draining=True)
    sinks = (
        *base.sinks[:1],
        SinkView("slack", "off", "401 unauthorized", None, 37, ago(5_400), 0),
        SinkView("email:3f9a", "muted", "dana: maintenance", NOW + timedelta(minutes=25), 3, ago(40), 12),
        SinkView("webhook", "resting", "breaker open", NOW + timedelta(seconds=20), 1, ago(9), 0),
    )
    problems = (
        Problem(
            "versions",
            "processes of 0.1.9 and 0.2.0 live side by side.",
            "nothing, while an update is under way",
            note=True,
        ),
        Problem(
            "agents-stale",
            "has had no run for 3m10s; no scheduler has sent a tick.",
            "start a scheduler: `periodiq app.actors`",
        ),
        Problem(
            "jobs-recovery",
            "failed 4 times in a row: DeadlockDetected 40P01.",
            "see its lines in the log: `kubectl logs -l app=sb-worker | grep jobs-recovery`",
        ),
        Problem(
            "discover-stuck",
            "stopped before it changed 8,120 rows, which is more than 2,000.",
            "look at them, then `sb-worker approve discover-stuck`",
        ),
        Problem(
            "slack", "is switched off: 401 unauthorized.", "replace its token, then `sb-worker notify enable slack`"
        ),
        Problem(
            "email:3f9a",
            "has 12 dead letters.",
            "`sb-worker dead list --sink email:3f9a`, then `sb-worker dead replay`",
        ),
    )
    return replace(
        base,
        sweepers=tuple(sweepers),
        processes=tuple(processes),
        sinks=sinks,
        problems=problems,
        verdict=Verdict.DEGRADED,
    )


def long_words() -> Overview:
    """Return one whose names and reasons are as long as they may be, without a place to break them."""
    base, word = degraded(), "w" * 300
    return replace(
        base,
        sweepers=tuple(replace(view, name=f"{view.name}-{word[:40]}", reason=word) for view in base.sweepers),
        processes=tuple(replace(process, host=word[:253], version=word[:60]) for process in base.processes),
        sinks=tuple(replace(sink, name=word[:80], reason=word) for sink in base.sinks),
        problems=tuple(replace(problem, subject=word, text=word, remedy=f"`{word}`") for problem in base.problems),
    )


def hostile() -> Overview:
    """Return one in which texts that others write try to be markup."""
    base, text = degraded(), "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>\">'>"
    return replace(
        base,
        deployment=text,
        sweepers=tuple(replace(view, name=text, reason=text) for view in base.sweepers),
        processes=tuple(replace(process, host=text, kind=text, version=text) for process in base.processes),
        sinks=tuple(replace(sink, name=text, reason=text, state=text) for sink in base.sinks),
        servers=tuple(replace(server, name=text, detail=text, version=text) for server in base.servers),
        problems=tuple(replace(problem, subject=text, text=text, remedy=text) for problem in base.problems),
    )
