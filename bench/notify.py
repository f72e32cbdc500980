"""Notifications under load, through real processes, receivers on the loopback interface.

    python -m bench.notify storm [seconds]      10,000 events in so many seconds: messages a sink, and the sums
    python -m bench.notify outage [seconds]     a sink down for so long, notifiers killed, Redis wiped: lost, twice
    python -m bench.notify hanging [seconds]    lateness and duration of sweeps without sinks and with hanging ones

Each prints JSON objects and asserts nothing. Deliveries a second are among what `python -m bench` measures.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import redis as redis_py
from psycopg.rows import dict_row

from app.core.events import Event, Severity
from app.notify.outbox import Outbox
from app.notify.routing import Router, targets
from bench.world import world
from sinks import SINKS
from tests.support import http_server
from tests.support.http_server import Receiver, Reply, Rude, Seen
from tests.support.processes import SCHEDULER, WORKER

NOTIFIER = (*WORKER, "--queues", "sinks")
SWEEPER = (*WORKER, "--queues", "sweeps")
NAMES = ("wraps-expired", "secrets-stale", "agents-stale", "jobs-recovery")
ENDS = """
SELECT target, state, count(*) FROM secrets_bridge_worker.notification_delivery AS delivery
  JOIN secrets_bridge_worker.notification_event AS event ON event.id = event_id
 WHERE tallies::text = '[]' GROUP BY target, state ORDER BY target, state
"""
RUNS = """
SELECT count(*),
       percentile_cont(ARRAY[0.5, 0.99, 1.0]) WITHIN GROUP
           (ORDER BY 1000 * extract(epoch FROM started_at - slot)::float8),
       percentile_cont(ARRAY[0.5, 0.99, 1.0]) WITHIN GROUP
           (ORDER BY 1000 * extract(epoch FROM finished_at - started_at)::float8)
  FROM secrets_bridge_worker.sweep_run WHERE outcome = 'success' AND started_at > %(since)s
"""


@contextmanager
def outbox(env: dict[str, str]) -> Iterator[Outbox]:
    """Yield an outbox that routes as a worker with this environment does, and leaves triggers to the relay."""
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield Outbox(Router(targets(SINKS, [sink.settings.read() for sink in SINKS])), lambda _delivery: None)
    finally:
        os.environ.clear()
        os.environ.update(before)


def event(number: int) -> Event:
    """Return event `number` of a storm."""
    return Event(NAMES[number % len(NAMES)], Severity.WARN, "something was flipped", "", {"flipped": 1 + number % 7})


def storm(seconds: float, events: int = 10_000) -> Iterator[dict[str, Any]]:
    """Commit events at an even pace while four sinks are notified, then 2,000 as fast as they go in."""
    with world(durable=True) as here, Receiver() as receiver:
        env = here.env(
            SB_NOTIFICATION_WEBHOOK_URL=f"{receiver.url}/webhook",
            SB_NOTIFICATION_SLACK_URL=f"{receiver.url}/slack",
            SB_NOTIFICATION_DISCORD_URL=f"{receiver.url}/discord",
            SB_NOTIFICATION_TEAMS_URL=f"{receiver.url}/teams",
            SB_NOTIFICATION_REPEAT_INTERVAL="1m",
            SB_NOTIFICATION_RELAY_INTERVAL="1s",
        )
        with outbox(env) as box, here.process(NOTIFIER, "n", env) as notifier, here.process(SCHEDULER, "s", env):
            cursor = here.sql.cursor(row_factory=dict_row)
            notifier.ready()
            started = time.monotonic()
            for number in range(events):
                time.sleep(max(0.0, started + seconds * number / events - time.monotonic()))
                with here.sql.transaction():
                    box.write(cursor, [event(number)])
            yield {"storm_seconds": round(time.monotonic() - started, 1), "drained_after": round(here.drained(200), 1)}
            yield {
                "events": events,
                "messages": dict(Counter(seen.path.strip("/") for seen in receiver.seen)),
                "flipped_sent": sum(1 + number % 7 for number in range(events)),
                "flipped_told_to_webhook": sum(flipped(seen) for seen in receiver.seen if seen.path == "/webhook"),
                "ends": {f"{target} {state}": number for target, state, number in here.sql.execute(ENDS.encode())},
            }
        with outbox(env) as box:
            started = time.monotonic()
            for number in range(2_000):
                with here.sql.transaction():
                    box.write(cursor, [event(number)])
            yield {"taken_in_a_second": round(2_000 / (time.monotonic() - started), 1), "deliveries_each": 5}


def flipped(seen: Seen) -> int:
    """Return the sum of the counts `flipped` in a message."""
    numbers: dict[str, int] = seen.json["metadata"]
    return sum(number for name, number in numbers.items() if name.rpartition(".")[2] == "flipped")


def outage(seconds: float) -> Iterator[dict[str, Any]]:
    """Keep a sink down for so many seconds, kill notifiers and wipe Redis, then have it answer again."""
    down = threading.Event()

    def answer(_seen: Seen) -> Reply:
        return Reply(503) if down.is_set() else Reply(200)

    with world() as here, Receiver(answer) as receiver, ExitStack() as stack:
        env = here.env(
            SB_NOTIFICATION_WEBHOOK_URL=receiver.url,
            SB_NOTIFICATION_TIMEOUT="1s",
            SB_NOTIFICATION_REPEAT_INTERVAL="0s",
            SB_NOTIFICATION_RELAY_INTERVAL="1s",
            SB_NOTIFICATION_PACE="500ms",
            SB_NOTIFICATION_BREAKER_COOLDOWN=f"{seconds / 20:.1f}s",
        )
        box = stack.enter_context(outbox(env))
        cursor = here.sql.cursor(row_factory=dict_row)
        stack.enter_context(here.process(SCHEDULER, "s", env))
        notifier = here.process(NOTIFIER, "n0", env)
        notifier.ready()
        kills, wiped, sent, refused, started = 0, 0, 0, 0, time.monotonic()
        down.set()
        while (passed := time.monotonic() - started) < seconds * 1.5:
            with here.sql.transaction():
                box.write(cursor, [event(sent)])
            sent += 1
            time.sleep(0.2)
            if passed > 5 * (kills + 1):
                for child in psutil.Process(notifier.popen.pid).children(recursive=True):
                    os.kill(child.pid, signal.SIGKILL)
                notifier.popen.wait(10)
                kills += 1
                notifier = here.process(NOTIFIER, f"n{kills}", env)
            if not wiped and passed > seconds / 2:
                with redis_py.Redis.from_url(here.redis.owner_url()) as client:
                    client.flushall()
                wiped = 1
            if passed >= seconds and down.is_set():
                refused = len(receiver.seen)
                down.clear()
        drained = here.drained(60)
        arrived = Counter(seen.headers["webhook-id"] for seen in receiver.seen[refused:])
        messages = {
            seen.headers["webhook-id"]: seen.json["metadata"].get("events", 1) for seen in receiver.seen[refused:]
        }
        ends = {f"{target} {state}": number for target, state, number in here.sql.execute(ENDS.encode())}
        notifier.__exit__(None, None, None)
        yield {
            "outage_seconds": seconds,
            "kills": kills,
            "redis_wiped": wiped,
            "requests_during_outage": refused,
            "events": sent,
            "events_told": sum(messages.values()),
            "messages": len(messages),
            "arrived_twice_with_equal_id": sum(number - 1 for number in arrived.values()),
            "drained_after": round(drained, 1),
            "ends": ends,
        }


def hanging(seconds: float) -> Iterator[dict[str, Any]]:
    """Run sweeps of one row a second, without sinks and with every kind of hanging one, in turns."""
    with world() as here, ExitStack() as stack:
        treats = (http_server.header_drip, http_server.body_drip, http_server.silence, http_server.banner_drip)
        rude = [stack.enter_context(Rude(treat)) for treat in treats]
        hang = {
            "SB_NOTIFICATION_WEBHOOK_URL": rude[0].url,
            "SB_NOTIFICATION_SLACK_URL": rude[1].url,
            "SB_NOTIFICATION_DISCORD_URL": rude[2].url,
            "SB_NOTIFICATION_TEAMS_URL": rude[0].url,
            "SB_NOTIFICATION_EMAIL_HOST": "127.0.0.1",
            "SB_NOTIFICATION_EMAIL_PORT": str(rude[3].port),
            "SB_NOTIFICATION_EMAIL_FROM": "worker@example.org",
            "SB_NOTIFICATION_EMAIL_TO": "ops@example.org",
            "SB_NOTIFICATION_REPEAT_INTERVAL": "0s",
            "SB_NOTIFICATION_PACE": "0s",
            "SB_NOTIFICATION_DIGEST_OVER": "0",
            "SB_NOTIFICATION_BREAKER_COOLDOWN": "1s",
        }
        for turn in range(4):
            env = here.env(**(hang if turn % 2 else {}))
            connections = sum(server.connections for server in rude)
            with (
                here.process(SWEEPER, f"w{turn}", env) as worker,
                here.process(NOTIFIER, f"n{turn}", env) as notifier,
                here.process(SCHEDULER, f"s{turn}", env),
            ):
                worker.ready()
                notifier.ready()
                time.sleep(3)
                since = here.sql.execute("SELECT now()").fetchone()
                assert since is not None
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    here.sql.execute(AGENT)
                    time.sleep(1)
                row = here.sql.execute(RUNS.encode(), {"since": since[0]}).fetchone()
                assert row is not None
                yield {
                    "sinks": "hanging" if turn % 2 else "none",
                    "runs": row[0],
                    "lateness_ms": [round(value, 1) for value in row[1]],
                    "duration_ms": [round(value, 1) for value in row[2]],
                    "hung_connections": sum(server.connections for server in rude) - connections,
                    "exit_statuses": [notifier.end(), worker.end()],
                }


AGENT = "INSERT INTO agents (name, secret_hash, last_seen_at) VALUES (gen_random_uuid()::text, '\\x01', '2026-01-01')"

WAYS = {"storm": (storm, 60), "outage": (outage, 30), "hanging": (hanging, 30)}


def main() -> None:
    """Print the figures of one measurement."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("amount", nargs="?", type=int, help="of events, or of seconds")
    given = parser.parse_args()
    way, amount = WAYS[given.way]
    for report in way(given.amount or amount):
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
