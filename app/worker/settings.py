"""How a worker process listens, stops and holds its locks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator

from app.core.config import variable
from app.core.metrics import memory_directory
from app.core.role import DeploymentSettings
from app.core.values import HostPort, Level, LongDuration, PositiveDuration, PositiveInt


def _directory(value: str) -> str:
    if not Path(value).is_dir() or not os.access(value, os.W_OK):
        raise ValueError("not a writable directory; accepted: an existing directory, best in memory (/dev/shm)")
    return value


def _environment(value: object) -> object:
    if value not in ("dev", "production"):
        raise ValueError("not an environment; accepted: dev, production")
    return value


def _role(value: object) -> object:
    if value not in ("separate", "all"):
        raise ValueError("not a role; accepted: separate, all")
    return value


def _switch(value: object) -> object:
    if value not in ("on", "off"):
        raise ValueError("not a switch; accepted: on, off")
    return value


class WorkerSettings(DeploymentSettings):
    """The process: where it listens, how it stops, how it holds its locks."""

    environment: Annotated[Literal["dev", "production"], BeforeValidator(_environment)] = variable(
        "SB_ENV", default="production", meaning="dev or production"
    )
    role: Annotated[Literal["separate", "all"], BeforeValidator(_role)] = variable(
        "SB_WORKER_ROLE",
        default="separate",
        meaning="what `sb-worker run` runs: separate processes for sweeps and notifications, or one for all",
    )
    log_level: Level = variable("LOG_LEVEL", default="info", meaning="debug, info, warn or error")
    local_address: HostPort = variable(
        "SB_WORKER_LOCAL_ADDR",
        default="127.0.0.1:8091",
        meaning="where /healthz, /readyz, /metrics and the page are served",
    )
    page: Annotated[Literal["on", "off"], BeforeValidator(_switch)] = variable(
        "SB_WORKER_PAGE",
        default="on",
        meaning="whether a read-only page about the deployment is served beside the probes, at /",
    )
    shutdown_grace: PositiveDuration = variable(
        "SB_WORKER_SHUTDOWN_GRACE", default="15s", meaning="time between SIGTERM and the end, at most"
    )
    lease: LongDuration = variable(
        "SB_WORKER_LOCK_LEASE",
        default="4s",
        meaning="lifetime of a sweeper's Redis lock; renewed every third of it",
    )
    budget: PositiveDuration | None = variable(
        "SB_WORKER_SWEEP_BUDGET",
        default=None,
        meaning="time one run may take before it hands over; unset: half its interval, at most 30s",
    )
    pages: PositiveInt = variable(
        "SB_WORKER_SWEEP_PAGES",
        default="100000",
        meaning="how many pages of a table one run reads at most; the next one goes on from there",
    )
    ledger_retention: PositiveDuration = variable(
        "SB_WORKER_LEDGER_RETENTION", default="168h", meaning="how long rows of sweep_run are kept"
    )
    metrics_directory: Annotated[str, AfterValidator(_directory)] = variable(
        "SB_WORKER_METRICS_DIR",
        default=memory_directory(),
        documented="/dev/shm, else the system's temporary folder",  # noqa: S108 - only shown
        meaning="where the processes of a replica share their metrics; not used by a process that is run alone",
    )
