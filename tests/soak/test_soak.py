"""The soak itself, for a moment: everything is there and does its work; whether it grows, no moment can tell."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.soak.__main__ import main
from tests.soak.rates import TIMES, cadences, settings

SECONDS = 15
#: What is watched, one of each kind.
SERIES = {
    "1 runner: anonymous PSS",
    "1 worker main: threads",
    "1 worker: RSS",
    "2 notifier: descriptors",
    "2 scheduler: CPU",
    "PostgreSQL: connections",
    "PostgreSQL: idle in transaction",
    "table sweep_run: live rows",
    "table notification_delivery: dead rows not vacuumed",
    "table secret_wraps: size",
    "sweeps: worst lateness",
    "Redis: keys",
    "Redis: memory",
}


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's /proc")
def test_every_sweeper_and_every_sink_of_two_replicas_works_and_is_watched(tmp_path: Path) -> None:
    status = main(["--minutes", str(SECONDS / 60), "--every", "1", "--out", str(tmp_path)])
    assert status == 0, (tmp_path / "table.txt").read_text()
    verdicts = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert {row["verdict"] for row in verdicts} == {"too short"}
    names = {row["series"] for row in verdicts}
    assert names >= SERIES
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(samples) > SECONDS / 3
    assert samples[-1].keys() >= {name for name in names if not name.endswith("CPU")}
    assert samples[-1]["1 worker: sockets"] > 0


def test_rates_are_a_tenth_of_the_defaults_and_no_shorter_than_a_second() -> None:
    every = {name: interval.total_seconds() for name, interval in cadences().items()}
    assert every["wraps-expired"] == 60 / TIMES
    assert every["gitops-poller"] == 15 / TIMES
    assert every["reveal-sessions-expired"] == 1
    assert settings()["SB_NOTIFICATION_PACE"] == "1500ms"
