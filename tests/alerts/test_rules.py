"""When each alert fires, when it does not, and that it clears: by promtool, on series that are made up."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.alerts import rules
from tests.alerts.rules import PACKAGE
from tests.support.packages import program
from tests.support.waiting import HUNG_PROCESS

#: Samples a minute, and minutes of calm before a fault, of the fault, and after it.
STEPS, BEFORE, FAULT, AFTER = 4, 10, 30, 30
#: An instance each: a first and a second replica.
A, B = 'job="w",instance="a"', 'job="w",instance="b"'
SWEEP = {"job": "w", "task": "wraps-expired"}
SINK = {"job": "w", "sink": "slack"}
NOW = f"0+{60 // STEPS}x{(BEFORE + FAULT + AFTER + 120) * STEPS}"


def flat(value: object, minutes: float) -> str:
    """Return samples of one value; of `_` none."""
    number = int(minutes * STEPS)
    return f"_x{number}" if value == "_" else f"{value}+0x{number - 1}"


def course(good: object, bad: object, minutes: float = FAULT) -> str:
    """Return a series that is good, then bad for so long, then good."""
    return f"{flat(good, BEFORE)} {flat(bad, minutes)} {flat(good, AFTER + 120)}"


def always(value: object) -> str:
    return flat(value, BEFORE + FAULT + AFTER + 120)


@dataclass(frozen=True)
class Fault:
    """Series by name that are good, bad for half an hour, and good again, and what is to be made of it."""

    alert: str
    series: Mapping[str, tuple[object, object]]
    #: The alert's labels, but for the severity and the service.
    labels: Mapping[str, str]
    #: After how many minutes of the fault it fires, at the latest, and is not firing yet.
    fires_after: float
    #: A fault that is shorter, minutes, is nobody's business.
    blip: float
    beside: Mapping[str, str] = field(default_factory=dict)
    clears_after: float = 1


def sweeps(alert: str, metric: str, bad: object, fires_after: float, blip: float) -> Fault:
    series = {f'{metric}{{{A},task="wraps-expired"}}': (0, bad), f'{metric}{{{B},task="wraps-expired"}}': (0, bad)}
    return Fault(alert, series, SWEEP, fires_after, blip)


def sinks(alert: str, metric: str, bad: object, fires_after: float, blip: float, **beside: str) -> Fault:
    return Fault(alert, {f'{metric}{{{A},sink="slack"}}': (0, bad)}, SINK, fires_after, blip, beside)


def alive(alert: str, kind: str, fires_after: float, blip: float) -> Fault:
    series = {f'worker_processes_alive{{{one},kind="{kind}"}}': (2, 0) for one in (A, B)}
    return Fault(alert, series, {"job": "w"}, fires_after, blip)


SUCCESS = f'worker_sweep_last_success_timestamp_seconds{{{A},task="wraps-expired"}}'
INFO = f'worker_build_info{{{A},version="1"}}'
FAULTS = [
    Fault("NoReplica", {INFO: (1, "_")}, {"job": "w"}, 9, 2),
    Fault(
        "TargetDown",
        {f"up{{{B}}}": (1, 0)},
        {"job": "w", "instance": "b"},
        6,
        3,
        {INFO: always(1), f"up{{{A}}}": always(1)},
    ),
    alive("SchedulerDead", "scheduler", 3, 1),
    alive("WorkerDown", "worker", 3, 1),
    alive("NotifierDown", "notifier", 3, 1),
    Fault(
        "ClockOff",
        {f'worker_processes_clock_skew_seconds{{{A},kind="notifier"}}': (0.02, 7.5)},
        {"job": "w", "kind": "notifier"},
        11,
        8,
    ),
    sweeps("CadencesDiffer", "worker_sweep_cadence_conflict", 1, 16, 10),
    Fault(
        "PostgresUnavailable",
        {f"worker_fleet_gauges_age_seconds{{{one}}}": (1, 60) for one in (A, B)},
        {"job": "w"},
        3,
        1,
    ),
    Fault(
        "RedisUnavailable",
        {f"worker_scheduler_tick_age_seconds{{{one}}}": (2, 60) for one in (A, B)},
        {"job": "w"},
        3,
        1,
        {
            f'worker_processes_alive{{{A},kind="scheduler"}}': always(1),
            **{f"worker_fleet_gauges_age_seconds{{{one}}}": always(1) for one in (A, B)},
        },
    ),
    Fault(
        "GaugesStale",
        {f"worker_fleet_gauges_age_seconds{{{A}}}": (1, 400)},
        {"job": "w", "instance": "a"},
        2,
        0.5,
        {f"worker_fleet_gauges_age_seconds{{{B}}}": always(1)},
    ),
    Fault(
        "GaugesStale",
        {f"worker_notification_gauges_age_seconds{{{A}}}": (1, 400)},
        {"job": "w", "instance": "a"},
        2,
        0.5,
    ),
    Fault("MetricsIncomplete", {f"worker_metrics_incomplete{{{A}}}": (0, 1)}, {"job": "w", "instance": "a"}, 16, 10),
    sweeps("SweepOverdue", "worker_sweep_overdue_seconds", 100, 3, 1),
    sweeps("SweepFailing", "worker_sweep_failures", 3, 3, 1),
    Fault(
        "SweepBacklogOld",
        {f'worker_sweep_expiry_lag_seconds{{{A},task="wraps-expired"}}': (40, 1000)},
        SWEEP,
        11,
        8,
        {SUCCESS: NOW},
    ),
    sweeps("LockHeldByStranger", "worker_sweep_lock_foreign_seconds", 20, 4, 2),
    sweeps("SweepPausedForLong", "worker_sweep_paused_seconds", 15000, 6, 3),
    sweeps("SweepBraked", "worker_sweep_braked", 1, 2, 0.5),
    sweeps("TableMissing", "worker_sweep_table_missing", 1, 16, 10),
    sinks("SinkOff", "worker_notification_sink_off", 1, 6, 3),
    sinks("DeadLetters", "worker_notification_dead", 3, 6, 3),
    sinks("DeliveriesWaiting", "worker_notification_oldest_pending_seconds", 4000, 6, 3),
]
#: Counters: minutes of the fault in which they rise by one.
RISING = [
    ("RowsFailed", f'worker_sweep_rows_failed_total{{{A},task="wraps-expired"}}', SWEEP, 91),
    ("HeartbeatFailing", f'worker_heartbeat_total{{{A},outcome="failure"}}', {"job": "w"}, 6),
]


class Promtool:
    """Runs tests of rules as promtool has them."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._program = program("promtool", PACKAGE)
        self._severity = {
            name: match[1] for name, body in rules.alerts().items() if (match := re.search(r"severity: (\w+)", body))
        }

    def check(self, alert: str, series: Mapping[str, str], expected: Mapping[float, Mapping[str, str] | None]) -> None:
        """Assert which labels an alert has at which minute; None: it does not fire then."""
        name = f"SecretsBridge{alert}"
        own = {"severity": self._severity[name], "service": "secrets-bridge-worker"}
        moments = [
            {
                "eval_time": f"{int(minute * 60)}s",
                "alertname": name,
                "exp_alerts": [] if labels is None else [{"exp_labels": {**own, **labels}}],
            }
            for minute, labels in expected.items()
        ]
        test = {
            "interval": f"{60 // STEPS}s",
            "input_series": [{"series": series, "values": values} for series, values in series.items()],
            "alert_rule_test": moments,
        }
        (self._place / "rules.yml").write_text(rules.without_annotations(), encoding="utf-8")
        unit = {"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": [test]}
        (self._place / "test.json").write_text(json.dumps(unit), encoding="utf-8")
        done = subprocess.run(
            [self._program, "test", "rules", "test.json"],
            cwd=self._place,
            capture_output=True,
            text=True,
            check=False,
            timeout=HUNG_PROCESS,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def promtool(tmp_path: Path) -> Promtool:
    return Promtool(tmp_path)


def name(fault: Fault) -> str:
    return fault.alert


@pytest.mark.parametrize("fault", FAULTS, ids=name)
def test_it_fires_while_the_fault_lasts_and_clears_after_it(promtool: Promtool, fault: Fault) -> None:
    series = {name: course(good, bad) for name, (good, bad) in fault.series.items()}
    promtool.check(
        fault.alert,
        {**series, **fault.beside},
        {
            BEFORE - 1: None,
            BEFORE + fault.blip: None,
            BEFORE + fault.fires_after: fault.labels,
            BEFORE + FAULT - 1: fault.labels,
            BEFORE + FAULT + fault.clears_after: None,
        },
    )


@pytest.mark.parametrize("fault", FAULTS, ids=name)
def test_a_short_fault_is_nobodys_business(promtool: Promtool, fault: Fault) -> None:
    series = {name: course(good, bad, fault.blip) for name, (good, bad) in fault.series.items()}
    moments = [BEFORE + minute / 2 for minute in range(40)]
    promtool.check(fault.alert, {**series, **fault.beside}, dict.fromkeys(moments))


@pytest.mark.parametrize(("alert", "series", "labels", "clears_after"), RISING)
def test_a_counter_that_rises_fires_until_its_last_rise_is_long_ago(
    promtool: Promtool, alert: str, series: str, labels: dict[str, str], clears_after: int
) -> None:
    rising = f"{flat(0, BEFORE)} 0+1x{FAULT * STEPS - 1} {flat(FAULT * STEPS, AFTER + 120)}"
    end = BEFORE + FAULT
    promtool.check(
        alert,
        {series: rising},
        {BEFORE - 1: None, BEFORE + 2: None, BEFORE + 12: labels, end: labels, end + clears_after: None},
    )


def test_a_counter_that_begins_anew_with_a_replica_does_not_rise(promtool: Promtool) -> None:
    series = {f'worker_sweep_rows_failed_total{{{A},task="wraps-expired"}}': f"{flat(7, BEFORE)} {flat(0, 60)}"}
    promtool.check("RowsFailed", series, {5: None, BEFORE + 1: None, BEFORE + 30: None})


def test_a_replica_that_lost_sight_of_postgres_alone_does_not_make_sweeps_overdue(promtool: Promtool) -> None:
    overdue = {
        f'worker_sweep_overdue_seconds{{{A},task="wraps-expired"}}': NOW,
        f'worker_sweep_overdue_seconds{{{B},task="wraps-expired"}}': always(0),
    }
    promtool.check("SweepOverdue", overdue, dict.fromkeys(range(0, 60, 5)))


def test_a_rolling_update_in_which_each_replica_is_away_for_a_minute_fires_nothing(promtool: Promtool) -> None:
    def away(value: object, at: int) -> str:
        return f"{flat(value, at)} {flat('_', 1)} {flat(value, 30)}"

    series = {f"worker_build_info{{{one}}}": away(1, at) for one, at in ((A, 10), (B, 11))}
    series |= {f"up{{{one}}}": f"{flat(1, at)} {flat(0, 1)} {flat(1, 30)}" for one, at in ((A, 10), (B, 11))}
    series |= {
        f'worker_processes_alive{{{one},kind="{kind}"}}': away(2, at)
        for one, at in ((A, 10), (B, 11))
        for kind in ("scheduler", "worker", "notifier")
    }
    for alert in ("NoReplica", "TargetDown", "SchedulerDead", "WorkerDown", "NotifierDown"):
        promtool.check(alert, series, dict.fromkeys(range(8, 20)))


def test_rows_that_wait_for_a_run_that_nobody_makes_are_no_backlog(promtool: Promtool) -> None:
    lag = {f'worker_sweep_expiry_lag_seconds{{{A},task="wraps-expired"}}': f"{flat(0, BEFORE)} 0+15x200"}
    stopped = f"0+15x{BEFORE * STEPS - 1} {flat(BEFORE * 60, 60)}"
    promtool.check("SweepBacklogOld", {**lag, SUCCESS: stopped}, dict.fromkeys(range(0, 50, 5)))


def test_a_success_of_any_replica_overrules_one_that_still_shows_a_missing_table(promtool: Promtool) -> None:
    missing = {f'worker_sweep_table_missing{{{B},task="wraps-expired"}}': always(1)}
    promtool.check("TableMissing", {**missing, SUCCESS: NOW}, dict.fromkeys(range(0, 60, 5)))


def test_a_heartbeat_that_another_notifier_sends_is_one(promtool: Promtool) -> None:
    series = {
        f'worker_heartbeat_total{{{A},outcome="failure"}}': NOW,
        f'worker_heartbeat_total{{{B},outcome="success"}}': NOW,
    }
    promtool.check("HeartbeatFailing", series, dict.fromkeys(range(0, 60, 5)))


def test_while_postgres_is_away_redis_is_not_to_blame(promtool: Promtool) -> None:
    series = {
        f"worker_scheduler_tick_age_seconds{{{A}}}": NOW,
        f"worker_fleet_gauges_age_seconds{{{A}}}": NOW,
        f'worker_processes_alive{{{A},kind="scheduler"}}': always(1),
    }
    promtool.check("RedisUnavailable", series, dict.fromkeys(range(0, 60, 5)))


def test_without_a_scheduler_redis_is_not_to_blame(promtool: Promtool) -> None:
    series = {
        f"worker_scheduler_tick_age_seconds{{{A}}}": NOW,
        f"worker_fleet_gauges_age_seconds{{{A}}}": always(1),
        f'worker_processes_alive{{{A},kind="scheduler"}}': always(0),
    }
    promtool.check("RedisUnavailable", series, dict.fromkeys(range(0, 60, 5)))


@pytest.mark.parametrize("state", ["off", "muted"])
def test_what_waits_for_a_sink_that_is_off_or_muted_is_not_told(promtool: Promtool, state: str) -> None:
    series = {
        f'worker_notification_oldest_pending_seconds{{{A},sink="slack"}}': always(9000),
        f'worker_notification_sink_{state}{{{A},sink="slack"}}': always(1),
    }
    promtool.check("DeliveriesWaiting", series, dict.fromkeys(range(0, 60, 5)))


def test_a_deployment_that_is_gone_is_missed_beside_another_one(promtool: Promtool) -> None:
    series = {
        'worker_build_info{job="w",deployment="blue"}': course(1, "_"),
        'worker_build_info{job="w",deployment="green"}': always(1),
    }
    promtool.check("NoReplica", series, {9: None, BEFORE + 9: {"job": "w", "deployment": "blue"}, BEFORE + 32: None})


def test_without_any_replica_ever_that_is_told(promtool: Promtool) -> None:
    promtool.check("NoReplica", {"up": always(1)}, {1: None, 5: {}})


def test_the_watchdog_fires_always(promtool: Promtool) -> None:
    promtool.check("Watchdog", {"up": always(1)}, {0: {}, 5: {}})


def test_each_alert_is_tested() -> None:
    tested = {fault.alert for fault in FAULTS} | {alert for alert, *_ in RISING} | {"Watchdog"}
    assert {f"SecretsBridge{alert}" for alert in tested} == set(rules.alerts())


@pytest.mark.parametrize(("alert", "body"), rules.alerts().items())
def test_each_alert_says_how_bad_it_is_what_to_run_and_where_to_read_on(alert: str, body: str) -> None:
    assert re.search(r"severity: (critical|warning|info)$", body, re.MULTILINE)
    assert "service: secrets-bridge-worker" in body
    assert f"runbook_url: docs/runbooks/{alert}.md" in body
    assert "summary: " in body
    assert alert == "SecretsBridgeWatchdog" or re.search(r"`(sb-worker|SB_|periodiq)", body)
    assert alert == "SecretsBridgeWatchdog" or " for: " in body


@pytest.mark.parametrize(("alert", "body"), rules.alerts().items())
def test_labels_that_a_text_names_are_labels_that_the_alert_has(alert: str, body: str) -> None:
    used = set(re.findall(r"\$labels\.(\w+)", body)) - {"job"}
    grouped = {word.strip() for group in re.findall(r" by \(([^)]*)\)", body) for word in group.split(",")}
    assert used <= grouped | ({"instance"} if alert.endswith("TargetDown") else set())


def test_the_rules_are_rules(tmp_path: Path) -> None:
    done = subprocess.run(
        [program("promtool", PACKAGE), "check", "rules", str(rules.RULES)],
        capture_output=True,
        text=True,
        check=False,
        timeout=HUNG_PROCESS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
