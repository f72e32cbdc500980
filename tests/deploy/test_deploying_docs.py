"""docs/deploying.md, followed by somebody new on plain processes: each command as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from app import __version__
from app.demo.binaries import postgres_programs
from app.demo.ports import reserved_port
from app.demo.servers import Redis
from app.supervisor import procfile
from tests.deploy import kustomize
from tests.support.packages import program
from tests.support.processes import ROOT, Process, environment
from tests.support.rights.grants import as_role
from tests.support.waiting import HUNG_PROCESS

TEXT = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
#: What a release's sources have that its docs speak of.
SOURCES = ("app", "actors", "sinks", "requirements", "deploy", "Procfile", "Makefile", "pyproject.toml")
ROLE = "secrets_bridge_worker"


def blocks(section: str) -> list[str]:
    """Return what stands between the fences of a section."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    place = tmp_path / "secrets-bridge-worker"
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, place / name)
    return place


@pytest.fixture
def _role(sql: Connection[Any]) -> Iterator[None]:
    """Take away the role that the page makes."""
    yield
    sql.execute(f"DROP OWNED BY {ROLE}".encode())
    sql.execute(f"DROP ROLE {ROLE}".encode())


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Redis]:
    """Return a Redis that nobody has made a user in."""
    with reserved_port() as port, Redis(tmp_path, port=port) as server:
        yield server


@pytest.mark.usefixtures("_role")
def test_a_newcomer_gets_a_replica_that_runs(
    sources: Path, owner_database: str, keys: Redis, sql: Connection[Any], tmp_path: Path
) -> None:
    program("redis-cli", "redis-server")
    sql.execute("DROP SCHEMA secrets_bridge_worker CASCADE")
    filled_in, rights, check = blocks("Rights")
    run, look, apart = blocks("Plain processes")
    servers = {
        "DATABASE_ADMIN_URL": owner_database,
        "DATABASE_URL": as_role(owner_database, f"{ROLE}:PASSWORD"),
        "REDIS_ADMIN_URL": keys.url(),
        "REDIS_URL": keys.url().replace("//", "//secrets-bridge-worker:PASSWORD@"),
    }
    assert re.findall(r"^export (\w+)=", filled_in, re.MULTILINE) == list(servers)
    own = environment("", "") | servers | {"PYTHONDONTWRITEBYTECODE": ""}  # these sources are the test's own
    own["PATH"] = f"{postgres_programs()}{os.pathsep}{os.environ['PATH']}"

    def follow(text: str, **env: str) -> str:
        words = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(
            words, cwd=sources, env=own | env, capture_output=True, text=True, timeout=HUNG_PROCESS, check=False
        )
        assert done.returncode == 0, f"{text}{done.stdout}{done.stderr}"
        return done.stdout

    follow(rights)
    assert (sources / ".venv/bin/sb-worker").exists()
    follow(check)
    words = (shutil.which("env") or "env", "-C", str(sources), "bash", "-c", f"exec {run}")
    with reserved_port() as notifier:
        more = {"SB_NOTIFICATION_LOCAL_ADDR": f"127.0.0.1:{notifier}"}
        with Process(words, own | more, tmp_path / "run.log") as replica:
            replica.ready()
            shown = follow(look, SB_WORKER_LOCAL_ADDR=f"127.0.0.1:{replica.port}")
            assert shown.startswith("alive\n")
            assert "wraps-expired" in shown
            assert replica.end(signal.SIGTERM) == 0
    commands = procfile.parse((ROOT / "Procfile").read_text(encoding="utf-8"))
    assert [line.removesuffix(" &") for line in apart.splitlines()[1:-1]] == [
        commands[name] for name in ("worker", "notifier", "scheduler")
    ]


def test_what_the_page_names_exists() -> None:
    for path in re.findall(r"(?:deploy|requirements)/[\w./-]*\w", TEXT):
        assert (ROOT / path).exists() or path == "deploy/.env", path
    deployments = [
        one["metadata"]["name"]
        for one in kustomize.render(ROOT / "deploy/kubernetes/overlays/single")
        if one["kind"] == "Deployment"
    ]
    assert set(re.findall(r"deployment/([\w-]+)", TEXT)) == set(deployments)
    assert set(re.findall(r"secrets-bridge-worker:(\d\S+)", TEXT)) == {__version__}
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"make ([a-z]+)(?=[`\n])", TEXT)) <= set(targets)
