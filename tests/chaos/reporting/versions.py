"""What a round was played on."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

from app import __version__
from app.storage.postgres import only_row

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment


def versions(deployment: Deployment) -> dict[str, str]:
    """Return versions by name, and how many cores there were."""
    with deployment.sql() as sql, deployment.client() as client:
        (postgres,) = only_row(sql.execute("SHOW server_version"))
        redis = client.info("server")
    valkey = redis.get("valkey_version")
    store = {"Valkey": str(valkey)} if valkey else {"Redis": str(redis["redis_version"])}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "secrets-bridge-worker": __version__,
        "PostgreSQL": str(postgres).partition(" ")[0],
        **store,
        "Python": platform.python_version(),
        "cores": str(cores),
    }
