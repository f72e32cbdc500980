"""The soak itself: load each second, a sample now and then, and at its end whether everything has happened."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.soak import load, processes, rates, servers
from tests.soak.deployment import Deployment
from tests.soak.judging import Point
from tests.soak.operator import Operator
from tests.soak.processes import Value
from tests.support.waiting import HUNG

RUNS = """
SELECT name, count(*) FILTER (WHERE outcome = 'success') AS good, count(*) FILTER (WHERE outcome = 'failure') AS failed
  FROM secrets_bridge_worker.sweep_run GROUP BY name
"""
DEAD = "SELECT count(*) FROM secrets_bridge_worker.notification_delivery WHERE state = 'dead'"
#: So many may go wrong on a busy machine, whatever their share.
SOME = 2
RECEIVERS = ("/webhook", "/slack", "/heartbeat", "mail")


class Watch:
    """One soak of a deployment: all series, by name, and the samples in `out`."""

    def __init__(self, deployment: Deployment, operator: Operator, out: Path, every: float) -> None:
        self._deployment, self._operator, self._every = deployment, operator, every
        self._out = out / "samples.jsonl"
        self._began = time.monotonic()
        self._known = self._processes()
        self._before: dict[str, tuple[float, float]] = {}
        self.series: dict[str, list[Point]] = defaultdict(list)
        self.units: dict[str, str] = {}

    def run(self, seconds: float, say: Callable[[str], None]) -> None:
        """Watch for so many seconds, and on until everything has happened once, should that take longer."""
        end, sample, step = self._began + seconds, 0.0, time.monotonic()
        with self._out.open("a", encoding="utf-8") as out:
            while (now := time.monotonic()) < end or (now < end + HUNG and any(self._not_yet())):
                load.second(self._deployment.sql)
                if now >= sample:
                    sample = max(now, sample + self._every)
                    values = self._sample()
                    out.write(json.dumps(self._line(values)) + "\n")
                    out.flush()
                    say(self._progress(values, end))
                step = max(step + 1.0, time.monotonic())
                time.sleep(max(0.0, step - time.monotonic()))

    def missing(self) -> Iterator[str]:
        """Yield what has not happened, or has and must not, whatever grows: a soak of nothing would prove nothing."""
        for name, process in self._known.items():
            if not process.is_running():
                yield f"process {name} is not the one of the beginning"
        yield from self._not_yet()
        for name, good, failed in self._deployment.sql.execute(RUNS):
            if failed > SOME + good / 10:
                yield f"{name}: {failed} of {failed + good} runs failed"
        if dead := self._deployment.sql.execute(DEAD).fetchall()[0][0]:
            yield f"{dead} dead letters"
        for what, bad in self._operator.bad.items():
            if bad > SOME + self._operator.asked[what] / 50:
                yield f"{bad} of {self._operator.asked[what]} times {what} was not well; last: {self._operator.said}"

    def _not_yet(self) -> Iterator[str]:
        """Yield what has not happened so far."""
        good = {name for name, good, _ in self._deployment.sql.execute(RUNS) if good}
        yield from (f"{name} has no good run" for name in rates.cadences() if name not in good)
        taken = self._deployment.sinks.taken()
        yield from (f"{receiver} got nothing" for receiver in RECEIVERS if not taken.get(receiver))

    def _processes(self) -> dict[str, psutil.Process]:
        found: dict[str, psutil.Process] = {}
        for number, replica in enumerate(self._deployment.replicas, 1):
            found |= processes.named(number, replica.popen.pid)
        return found

    def _sample(self) -> dict[str, Value]:
        now = time.monotonic() - self._began
        values = dict(processes.look(self._known))
        values |= servers.look(self._deployment.sql, self._deployment.client, max(self._every, 10.0))
        values |= {f"taken: {name}": Value(n, "number", False) for name, n in self._deployment.sinks.taken().items()}
        for name, value in list(values.items()):
            if name.endswith(": CPU seconds"):
                earlier, used = self._before.get(name, (now, value.value))
                self._before[name] = now, value.value
                if now > earlier:
                    share = 100 * (value.value - used) / (now - earlier)
                    values[name.replace(" seconds", "")] = Value(share, "% CPU")
        for name, value in values.items():
            if value.judged:
                self.series[name].append((now, value.value))
                self.units[name] = value.unit
        return values

    def _line(self, values: dict[str, Value]) -> dict[str, Any]:
        return {"seconds": round(time.monotonic() - self._began, 1)} | {
            name: round(value.value, 4) for name, value in values.items()
        }

    def _progress(self, values: dict[str, Value], end: float) -> str:
        def total(what: str) -> float:
            return sum(value.value for name, value in values.items() if name.endswith(f": {what}"))

        return (
            f"{time.monotonic() - self._began:5.0f}s, {max(0.0, end - time.monotonic()):.0f}s to go: "
            f"PSS {total('PSS'):.1f} MiB, {total('descriptors'):.0f} descriptors, {total('threads'):.0f} threads, "
            f"CPU {total('CPU'):.0f} %, {values['Redis: keys'].value:.0f} keys, "
            f"{values['table sweep_run: live rows'].value:.0f} rows of the ledger, "
            f"late by {values['sweeps: worst lateness'].value:.2f} s at worst"
        )
