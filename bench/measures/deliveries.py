"""Deliveries of notifications, one message an event, and polls of ArgoCD, each beside a bare httpx loop."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from psycopg.rows import dict_row

from bench import gitops, notify
from bench.measurement import Arms, Figure, Size, measurement
from bench.meters import family_cpu
from bench.receiver import Receiver, receiver
from bench.world import child, world
from tests.support.argocd import settings
from tests.support.processes import SCHEDULER

#: No digest, no pace, no window: each event is a message.
SINGLE = {
    "SB_NOTIFICATION_NOOP_MIN_SEVERITY": "error",
    "SB_NOTIFICATION_REPEAT_INTERVAL": "0s",
    "SB_NOTIFICATION_PACE": "0s",
    "SB_NOTIFICATION_DIGEST_OVER": "0",
    "SB_NOTIFICATION_RELAY_INTERVAL": "1s",
}
_EMPTY = """
TRUNCATE secrets_bridge_worker.notification_event, secrets_bridge_worker.notification_delivery,
         secrets_bridge_worker.notification_target, secrets_bridge_worker.notification_hold
"""
#: As if messages had been lost a while ago, so that the relay's next look finds them.
_UNTRIGGERED = """
UPDATE secrets_bridge_worker.notification_delivery
   SET nudged_at = nudged_at - interval '1 hour', queued_at = queued_at - interval '1 hour'
"""
#: Seconds after which a backlog that is not delivered is left.
_LONG = 60


class Notifiers:
    """So many notifiers and a scheduler on servers of their own, which wait for events."""

    def __init__(self, stack: ExitStack, number: int) -> None:
        self._here, self._hook = stack.enter_context(world()), stack.enter_context(receiver())
        self._env = self._here.usual(SB_NOTIFICATION_WEBHOOK_URL=self._hook.url, **SINGLE)
        self._processes = [
            stack.enter_context(self._here.process(notify.NOTIFIER, f"notifier{n}", self._env)) for n in range(number)
        ]
        for process in self._processes:
            process.ready()
        stack.enter_context(self._here.process(SCHEDULER, "scheduler", self._env))

    def deliver(self, events: int) -> dict[str, float]:
        """Have so many events delivered; return the rate, as the receiver sees it, and what a delivery costs."""
        sql = self._here.sql
        sql.execute(_EMPTY)
        self._hook.got()
        before = self._cpu()
        with notify.outbox(self._env) as box, sql.transaction():
            box.write(sql.cursor(row_factory=dict_row), (notify.event(number) for number in range(events)))
            sql.execute(_UNTRIGGERED)
        self._here.drained(_LONG)
        cpu, got = self._cpu() - before, self._hook.got()
        return {
            "rate": got.arrived / max(got.seconds, 0.001),
            "cpu": cpu / max(got.arrived, 1) * 1000,
            "arrived": got.arrived,
        }

    @property
    def pids(self) -> list[int]:
        """The notifiers' main processes."""
        return [process.popen.pid for process in self._processes]

    def _cpu(self) -> float:
        return sum(family_cpu(pid) for pid in self.pids)


_BARE = """
import sys, httpx
url, events = sys.argv[1], int(sys.argv[2])
body = b'{"time":"2026-11-23T09:00:00Z","severity":"warn","component":"x","title":"t","metadata":{"flipped":1}}'
with httpx.Client() as client:
    for _ in range(events):
        client.post(url, content=body, headers={"Content-Type": "application/json"})
"""


def bare(hook: Receiver, events: int) -> dict[str, float]:
    """Send as many by a bare httpx loop, one after the other."""
    hook.got()
    command = [sys.executable, "-c", _BARE, hook.url, str(events)]
    with child(command) as process:
        process.wait(_LONG)
    got = hook.got()
    return {"rate": got.arrived / max(got.seconds, 0.001), "arrived": got.arrived}


@measurement(
    "deliveries",
    "1,500 events to a webhook, one message each, one notifier",
    best="a bare synchronous httpx loop",
    figures=(
        Figure("rate", "deliveries a second", "/s", 1.0, ratio=True),
        Figure("cpu", "CPU of the notifier for a delivery", "ms"),
    ),
)
def _deliveries(size: Size) -> Iterator[Arms]:
    events = size.of(1_500, quick=400)
    with ExitStack() as stack:
        notifiers, hook = Notifiers(stack, 1), stack.enter_context(receiver())
        yield Arms(lambda: bare(hook, events), lambda: notifiers.deliver(events))


@measurement(
    "poller",
    "500 observations on 5 ArgoCDs, 50 ms a call, two calls each",
    best="a bare concurrent httpx loop, 8 at once",
    figures=(
        Figure("rate", "polls a second", "/s", 1.5, ratio=True),
        Figure("cpu", "own CPU for a call", "ms", 1.2, less=True),
    ),
)
def _poller(size: Size) -> Iterator[Arms]:
    rows = size.of(500, quick=200)
    command = [sys.executable, "-m", "bench.gitops", "serve", "0.05"]
    with world(durable=True) as here, child(command) as argo:
        assert argo.stdout is not None
        ports = json.loads(argo.stdout.readline())
        url = here.postgres.url()

        def baseline() -> Mapping[str, float]:
            cpu, started = time.process_time(), time.perf_counter()
            asyncio.run(gitops.bare(ports, rows, 8))
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            return {"rate": rows / seconds, "cpu": cpu / (2 * rows) * 1000}

        def ours() -> Mapping[str, float]:
            gitops.fill(url, ports, rows, hanging=False)
            cpu = time.process_time()
            got = gitops.poll(url, settings(concurrency=8))
            cpu = time.process_time() - cpu
            return {"rate": got["calls_per_second"] / 2, "cpu": cpu / (2 * rows) * 1000, "polled": got["succeeded"]}

        yield Arms(baseline, ours)
        argo.terminate()


DELIVERIES = (_deliveries, _poller)
