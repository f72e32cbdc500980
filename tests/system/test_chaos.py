"""Exactly once, in small: the rounds of `bench.chaos` for a few seconds, with their sums asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.chaos import Round


@pytest.mark.parametrize(("kill", "seconds"), [(False, 6), (True, 12)], ids=["left alone", "killed every second"])
def test_each_slot_is_run_once_or_covered_and_losers_ask_postgres_nothing(
    tmp_path: Path, kill: bool, seconds: float
) -> None:
    report = Round(tmp_path, kill=kill).run(seconds)

    assert report["slots_run_twice"] == 0
    assert report["slots_neither_run_nor_covered"] == 0
    assert report["verify_finds"] == []
    assert all(task["in_order"] for task in report["tasks"])
    assert [task["name"] for task in report["tasks"]] == [
        "agents-stale",
        "cross-team-fill-window-expired",
        "discover-scheduler",
        "discover-stuck",
        "jobs-recovery",
        "reveal-sessions-expired",
        "secrets-stale",
        "wraps-expired",
    ]
    assert report["exit_statuses"] == [0] * 7
    if kill:
        assert report["kills"] >= 4
    else:
        assert report["ticks"]["failure"] == 0
        assert all(task["running"] == 0 for task in report["tasks"])
        assert report["lock_skipped"] == report["ticks"]["skipped_lock"] > 0
        assert report["transactions_begun"] == report["transactions_in_ledger"] > 0
        assert report["claims_sent"] == report["runs_in_ledger"] == report["ticks"]["success"]
