"""The settings of the process itself; each sweeper and sink declares its own beside its code."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator

from app.config import Settings, variable
from app.database_url import DatabaseUrl, parse_database_url
from app.redis_url import RedisUrl, parse_redis_url
from app.values import HostPort, Level, LongDuration, PositiveDuration, PositiveInt


def _database_url(value: object) -> DatabaseUrl:
    return value if isinstance(value, DatabaseUrl) else parse_database_url(str(value))


def _redis_url(value: object) -> RedisUrl:
    return value if isinstance(value, RedisUrl) else parse_redis_url(str(value))


def _namespace(value: str) -> str:
    if not value.isprintable() or any(character in value for character in "{}* "):
        raise ValueError("not a key prefix; accepted: printable text without spaces, braces or asterisks")
    return value


def _directory(value: str) -> str:
    if not Path(value).is_dir() or not os.access(value, os.W_OK):
        raise ValueError("not a writable directory; accepted: an existing directory, best in memory (/dev/shm)")
    return value


def _environment(value: object) -> object:
    if value not in ("dev", "production"):
        raise ValueError("not an environment; accepted: dev, production")
    return value


def memory_directory() -> str:
    """Name a writable directory, in memory where there is one: /dev/shm, else the system's temporary folder."""
    shared = Path("/dev/shm")  # noqa: S108 - probed, and only ever written below a folder of our own
    if os.access(shared, os.W_OK):
        return str(shared)
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # then the check of the setting says what to do
        return str(shared)


class DatabaseSettings(Settings):
    """PostgreSQL, shared with the api."""

    url: Annotated[DatabaseUrl, BeforeValidator(_database_url)] = variable(
        "DATABASE_URL", secret=True, meaning="the control plane's PostgreSQL, as a URL or key=value pairs"
    )
    max_connections: PositiveInt | None = variable(
        "DATABASE_MAX_CONNS",
        default=None,
        meaning="connections of one worker process at most; unset: pool_max_conns of the URL, else 10",
    )
    connection_lifetime: PositiveDuration = variable(
        "DATABASE_CONN_LIFETIME", default="30m", meaning="age at which an idle connection is replaced"
    )


class RedisSettings(Settings):
    """Redis: locks shared with the Go worker, and Dramatiq's queues."""

    url: Annotated[RedisUrl, BeforeValidator(_redis_url)] = variable(
        "REDIS_URL", secret=True, meaning="the control plane's Redis, redis:// rediss:// or unix://"
    )
    pool_size: PositiveInt | None = variable(
        "REDIS_POOL_SIZE",
        default=None,
        meaning="connections of one process at most; unset: pool_size of the URL, else as many as its threads need",
    )
    dial_timeout: PositiveDuration = variable(
        "REDIS_DIAL_TIMEOUT", default="5s", meaning="time to wait for a connection"
    )
    namespace: Annotated[str, AfterValidator(_namespace)] = variable(
        "REDIS_NAMESPACE",
        default="secrets-bridge",
        meaning="prefix of the lock keys; all replicas must agree",
    )
    queue_namespace: Annotated[str, AfterValidator(_namespace)] = variable(
        "SB_WORKER_QUEUE_NAMESPACE", default="dramatiq", meaning="prefix of Dramatiq's own keys"
    )


class WorkerSettings(Settings):
    """The process: where it listens, how it stops, how it holds its locks."""

    environment: Annotated[Literal["dev", "production"], BeforeValidator(_environment)] = variable(
        "SB_ENV", default="production", meaning="dev or production"
    )
    log_level: Level = variable("LOG_LEVEL", default="info", meaning="debug, info, warn or error")
    local_address: HostPort = variable(
        "SB_WORKER_LOCAL_ADDR",
        default="127.0.0.1:8091",
        meaning="where /healthz, /readyz and /metrics are served",
    )
    shutdown_grace: PositiveDuration = variable(
        "SB_WORKER_SHUTDOWN_GRACE", default="15s", meaning="time between SIGTERM and the end, at most"
    )
    lease: LongDuration = variable(
        "SB_WORKER_LOCK_LEASE",
        default="15s",
        meaning="lifetime of a sweeper's Redis lock; renewed every third of it",
    )
    budget: PositiveDuration | None = variable(
        "SB_WORKER_SWEEP_BUDGET",
        default=None,
        meaning="time one run may take before it hands over; unset: half its interval, at most 30s",
    )
    ledger_retention: PositiveDuration = variable(
        "SB_WORKER_LEDGER_RETENTION", default="168h", meaning="how long rows of sweep_run are kept"
    )
    metrics_directory: Annotated[str, AfterValidator(_directory)] = variable(
        "SB_WORKER_METRICS_DIR",
        default=memory_directory(),
        meaning="the one directory that must be writable: metric files of the worker's processes, a few 100 KiB",
    )
