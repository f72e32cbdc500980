"""An operator who is never idle: the real commands, typed all the time while everything goes on."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress

import psycopg
import redis

from actors import SWEEPERS
from app.storage.postgres import only_row
from tests.chaos.deployment import Deployment
from tests.chaos.faults.fault import counting
from tests.chaos.surroundings.commands import harmless, sb_worker

NAMES = tuple(sweeper.name for sweeper in SWEEPERS)
RECEIVERS = ("webhook", "slack")
_BEGUN = """
SELECT count(*) FILTER (WHERE name = %(name)s), count(*) FILTER (WHERE name <> %(name)s)
  FROM secrets_bridge_worker.sweep_run
 WHERE requested_by IS NULL AND started_at > %(since)s
   AND started_at < (SELECT until FROM secrets_bridge_worker.sweeper_pause AS pause
                      WHERE pause.name = %(name)s ORDER BY began_at DESC LIMIT 1)
"""
_BY_HAND = """
SELECT count(*) FROM secrets_bridge_worker.sweep_run WHERE name = %s AND requested_by IS NOT NULL AND id > %s
"""
_LAST_RUN = "SELECT coalesce(max(id), 0) FROM secrets_bridge_worker.sweep_run"
_HELD_BACK = "SELECT count(*) FROM secrets_bridge_worker.notification_delivery WHERE target = %s AND state = 'pending'"


@counting("operator")
def look(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Ask one of the commands that look. It counts when it has answered as documented."""
    del over
    name = chance.choice(NAMES)
    words, allowed = chance.choice(
        (
            (("status",), {0, 3}),
            (("status", "-o", "json"), {0, 3}),
            (("why", name), {0, 3}),
            (("why", name, "5s", "-o", "json"), {0, 3}),
            (("verify",), {0}),
            (("verify", "-o", "json"), {0}),
            (("runs", name), {0}),
            (("pause",), {0}),
            (("notify", "log", "--sums"), {0}),
            (("notify", "log", "--newer", "1m"), {0}),
            (("dead", "list"), {0}),
        )
    )
    done = sb_worker(deployment, *words, allowed=allowed)
    if done is not None and done.returncode in allowed:
        deployment.log.effect("operator")


@counting("pause")
def pause(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Pause a sweeper, and have it run again before its time, or by itself.

    It counts when the pause held: others began runs, and it none but those that somebody asked for.
    """
    name = chance.choice(NAMES)
    seconds = chance.uniform(1.5, 3)
    by_itself = chance.random() < 0.5
    length = f"{seconds + 2:.1f}s" if by_itself else "1m"
    with deployment.log.during("pause", outage=False, note=name):
        done = sb_worker(deployment, "pause", name, "--for", length, "--reason", "chaos", allowed={0})
        if done is None or done.returncode:
            return
        with suppress(psycopg.Error):  # which rounds with faults of PostgreSQL are about
            with deployment.sql() as sql:
                (since,) = only_row(sql.execute("SELECT clock_timestamp()"))
            over.wait(seconds)
            with deployment.sql() as sql:
                begun, others = only_row(sql.execute(_BEGUN, {"name": name, "since": since}))
            if not begun:
                deployment.log.effect("pause", int(others > 0))
            elif harmless(deployment):
                deployment.remarks.append(f"{name}: {begun} runs were begun although it was paused")
        if by_itself:
            over.wait(2)
        else:
            sb_worker(deployment, "resume", name, allowed={0})


@counting("sweep", "operator")
def sweep_by_hand(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Sweep by hand, or look what that would change. It counts when the ledger has a run by hand, or it was told."""
    del over
    name = chance.choice(NAMES)
    words = chance.choice((("--dry-run",), ("--wait", "3s"), ("--wait", "3s", "--paused"), ("--wait", "0s", "--json")))
    # Somebody else may hold the lock for as long as was waited, and a pause holds a run by hand as well.
    allowed = {0} if words == ("--dry-run",) else {0, 1}
    with deployment.sql() as sql:
        (last,) = only_row(sql.execute(_LAST_RUN))
    done = sb_worker(deployment, "sweep", name, *words, allowed=allowed)
    if done is None or done.returncode:
        return
    if words == ("--dry-run",):
        deployment.log.effect("operator")
        return
    with deployment.sql() as sql:
        (runs,) = only_row(sql.execute(_BY_HAND, [name, last]))
    deployment.log.effect("sweep", int(runs > 0))


@counting("unlock")
def unlock(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Leave a lock of a stranger without an end, as a hand or a broken script would, and take it away by `unlock`.

    It counts when the lock was held, and is deleted by the command.
    """
    name = chance.choice(NAMES)
    key = f"secrets-bridge:lock:worker:sweeper:{name}"
    with suppress(redis.RedisError), deployment.client() as client:
        while not client.set(key, "left by a script", nx=True):
            if over.wait(0.002):
                return
        with deployment.log.during("unlock", outage=False, note=name):
            over.wait(chance.uniform(0, 1))
            done = sb_worker(deployment, "unlock", name, "--yes", allowed={0})
            left = client.get(key)
        if left == b"left by a script":
            if done is not None and done.returncode == 0:  # else it has said that it could not
                deployment.remarks.append(f"sb-worker unlock {name}: the lock is still there")
            client.delete(key)
        elif done is not None and "is deleted" in done.stdout:
            deployment.log.effect("unlock")


@counting("mute")
def mute(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Mute a receiver, and end that by hand or by itself.

    It counts when nothing was accepted meanwhile although something is there to be sent.
    """
    name = chance.choice(RECEIVERS)
    seconds = chance.uniform(1.5, 3)
    by_hand = chance.random() < 0.5
    length = "1m" if by_hand else f"{seconds + 2:.1f}s"  # it is looked before it ends
    done = sb_worker(deployment, "notify", "mute", name, "--for", length, "--reason", "chaos", allowed={0})
    with deployment.log.during("mute", outage=False, note=name):
        since = time.monotonic()
        over.wait(seconds)
        if done is not None and done.returncode == 0:
            _count_silence(deployment, name, since)
        if by_hand:
            sb_worker(deployment, "notify", "unmute", name, allowed={0})
        else:
            over.wait(2)


def _count_silence(deployment: Deployment, name: str, since: float) -> None:
    """Count a mute that began then, and still holds."""
    with suppress(psycopg.Error), deployment.sql() as sql:  # a server that fails leaves it uncounted, and ended
        (held_back,) = only_row(sql.execute(_HELD_BACK, [name]))
        accepted = deployment.outside.servers[name].accepted
        heard = any(seen.at > since for seen in list(accepted) if seen.path == f"/{name}")
        deployment.log.effect("mute", int(held_back > 0 and not heard))
