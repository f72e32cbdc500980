"""Settings: where PostgreSQL and Redis are, and how to connect to them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from app.core.config import Settings, variable
from app.core.values import PositiveDuration, PositiveInt
from app.storage.postgres_dsn import DatabaseUrl, parse_database_url
from app.storage.redis_dsn import RedisUrl, parse_redis_url


def _database_url(value: object) -> DatabaseUrl:
    return value if isinstance(value, DatabaseUrl) else parse_database_url(str(value))


def _redis_url(value: object) -> RedisUrl:
    return value if isinstance(value, RedisUrl) else parse_redis_url(str(value))


def _namespace(value: str) -> str:
    if not value.isprintable() or any(character in value for character in "{}* "):
        raise ValueError("not a key prefix; accepted: printable text without spaces, braces or asterisks")
    return value


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
