"""The pictures of the page in docs/: two real replicas on real servers, a living control plane, and things that fail.

`make screenshots` runs it for some minutes; it needs the packages chromium, chromium-driver and pngquant.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection

from app.demo import data
from app.demo.argocd import Argocd
from app.demo.ports import reserved_port
from app.demo.receiver import Receiver
from app.demo.servers import Postgres, Redis
from app.demo.web import Answer, Web
from app.storage import migrations
from tests.page.browser import Browser
from tests.support.processes import BIN, ROOT, Process, environment

#: Seconds of life before the pictures; the last of them with a sweeper that fails.
SECONDS, BROKEN_SECONDS = 150.0, 24.0
#: Shorter cadences than in production, so that the drawings are full.
CADENCES = {
    "SB_SWEEP_WRAPS_INTERVAL": "2s",
    "SB_SWEEP_SECRETS_INTERVAL": "5s",
    "SB_SWEEP_AGENTS_INTERVAL": "2s",
    "SB_SWEEP_AGENTS_STALE_AFTER": "60s",
    "SB_SWEEP_JOBS_INTERVAL": "2s",
    "SB_SWEEP_DISCOVER_INTERVAL": "10s",
    "SB_SWEEP_DISCOVER_STUCK_INTERVAL": "5s",
    "SB_SWEEP_REVEAL_INTERVAL": "3s",
    "SB_SWEEP_CROSS_TEAM_FILL_INTERVAL": "5s",
    "SB_SWEEP_GITOPS_POLL_INTERVAL": "2s",
    "SB_SWEEP_GITOPS_TIMEOUT_INTERVAL": "3s",
}
HOSTS = ("sb-worker-6f9c7d-k2xvq", "sb-worker-6f9c7d-zz81p")
#: File, width, greatest height, scheme.
PICTURES = (
    ("page-wide", 1280, 1700, "light"),
    ("page-wide-dark", 1280, 1700, "dark"),
    ("page-phone", 390, 1500, "light"),
    ("page-phone-dark", 390, 1500, "dark"),
)


def main() -> None:
    """Write the pictures."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    with tempfile.TemporaryDirectory(prefix="sb-pictures-") as folder, ExitStack() as stack:
        path = Path(folder)
        postgres, redis = stack.enter_context(Postgres(path)), stack.enter_context(Redis(path))
        receiver, argocd = stack.enter_context(Receiver()), stack.enter_context(Argocd(path))
        refuses = stack.enter_context(Web(lambda _request: Answer(403, {})))
        connection = stack.enter_context(psycopg.connect(postgres.url(), autocommit=True))
        connection.execute((ROOT / "app" / "demo" / "control_plane.sql").read_bytes())
        data.pile_up(connection)
        argocd.enter(connection)
        migrations.migrate(connection)
        settings = {
            "SB_WORKER_NAME": "prod-eu",
            **CADENCES,
            **receiver.variables(),
            **argocd.variables(),
            "SB_NOTIFICATION_TEAMS_URL": f"{refuses.url}/teams",
            "SB_DISCOVER_TARGETS_JSON": data.TARGETS,
        }
        replicas = [stack.enter_context(_replica(host, postgres, redis, path, settings)) for host in HOSTS]
        pause = ("pause", "secrets-stale", "--for", "2h", "--reason", "cluster eu-3 is moved")
        operator = environment(postgres.url(), redis.url(), LOGNAME="dana")
        subprocess.run(_named("ops-1", *pause), env=operator, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        _live(connection, seconds)
        _take(f"http://127.0.0.1:{replicas[0]}/still")


@contextmanager
def _replica(host: str, postgres: Postgres, redis: Redis, path: Path, settings: Mapping[str, str]) -> Iterator[int]:
    """Run a replica that takes itself for another host, where that is allowed; yield the port of its page."""
    with reserved_port(1) as port:
        addresses = {
            "SB_WORKER_LOCAL_ADDR": f"127.0.0.1:{port}",
            "SB_NOTIFICATION_LOCAL_ADDR": f"127.0.0.1:{port + 1}",
        }
        env = environment(postgres.url(), redis.url(), **settings, **addresses)
        with Process(_named(host, "run"), env, path / f"{host}.log"):
            yield port


def _named(host: str, *words: str) -> tuple[str, ...]:
    """Return a command of ours that takes itself for another host, where that is allowed."""
    unshare = shutil.which("unshare") if os.geteuid() == 0 else None
    named = (unshare, "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host) if unshare else ()
    return (*named, str(BIN / "sb-worker"), *words)


def _live(connection: Connection[Any], seconds: float) -> None:
    """Let the control plane live for so long; near the end it loses a column, as by a migration that came too early."""
    end = time.monotonic() + seconds
    whole = True
    while (left := end - time.monotonic()) > 0:
        if left < BROKEN_SECONDS and whole:
            connection.execute("ALTER TABLE reveal_sessions RENAME expires_at TO ends_at")
            whole = False
        data.moment(connection)
        time.sleep(0.5)


def _take(url: str) -> None:
    with Browser() as browser:
        for name, width, height, scheme in PICTURES:
            browser.size(width, 800, phone=width < 600)
            browser.scheme(scheme)
            browser.open(url)
            whole = browser.run("return document.documentElement.scrollHeight")
            browser.size(width, min(height, whole), phone=width < 600)
            picture = ROOT / "docs" / f"{name}.png"
            picture.write_bytes(_small(browser.screenshot()))
            print(picture.relative_to(ROOT), f"{picture.stat().st_size / 1024:.0f} KiB")


def _small(picture: bytes) -> bytes:
    """Return the picture with few colours."""
    done = subprocess.run(["pngquant", "--speed", "1", "64", "-"], input=picture, stdout=subprocess.PIPE, check=True)
    return done.stdout


if __name__ == "__main__":
    main()
