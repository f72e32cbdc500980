"""Settings: where PostgreSQL and Redis are, and how to connect to them."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from app.core.config import Settings, variable
from app.core.values import leniently, parse_positive_duration, parse_positive_int
from app.storage import redis_dsn
from app.storage.postgres_dsn import parse_database_url
from app.storage.postgres_parameters import DatabaseUrl
from app.storage.redis_dsn import RedisUrl, parse_redis_url

#: Connections to PostgreSQL at most, where neither a setting nor the URL bounds them.
DEFAULT_CONNECTIONS = 10
#: One for what takes long, and one for the others meanwhile.
LEAST_CONNECTIONS = 2
_LIFETIME = timedelta(minutes=30)


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
    max_connections: Annotated[int | None, leniently(parse_positive_int, None, "unset")] = variable(
        "DATABASE_MAX_CONNS",
        default=None,
        meaning="connections of one worker process at most; unset: pool_max_conns of the URL, else 10",
    )
    connection_lifetime: Annotated[timedelta, leniently(parse_positive_duration, _LIFETIME, "30m")] = variable(
        "DATABASE_CONN_LIFETIME", default="30m", meaning="age at which an idle connection is replaced"
    )

    @property
    def connections(self) -> int:
        """Connections of one process at most."""
        return max(self._asked or DEFAULT_CONNECTIONS, LEAST_CONNECTIONS)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was taken as another value, and that there are more connections than were asked for."""
        return (*super().warnings, *_too_few("DATABASE_MAX_CONNS", self._asked))

    @property
    def _asked(self) -> int | None:
        return self.max_connections or self.url.max_connections

    def current_url(self) -> DatabaseUrl:
        """Return the URL as it is now: that of DATABASE_URL_FILE is read anew."""
        url: DatabaseUrl = self.current("url")
        return url


class RedisSettings(Settings):
    """Redis: locks shared with the Go worker, and Dramatiq's queues."""

    url: Annotated[RedisUrl, BeforeValidator(_redis_url)] = variable(
        "REDIS_URL", secret=True, meaning="the control plane's Redis, redis:// rediss:// or unix://"
    )
    pool_size: Annotated[int | None, leniently(parse_positive_int, None, "unset")] = variable(
        "REDIS_POOL_SIZE",
        default=None,
        meaning="connections of one process at most; unset: pool_size of the URL, else as many as its threads need",
    )
    dial_timeout: Annotated[timedelta | None, leniently(parse_positive_duration, None, "unset")] = variable(
        "REDIS_DIAL_TIMEOUT",
        default=None,
        meaning="time to wait for a connection; unset: dial_timeout of the URL, else 5s",
    )
    namespace: Annotated[str, AfterValidator(_namespace)] = variable(
        "REDIS_NAMESPACE",
        default="secrets-bridge",
        meaning="prefix of the lock keys; all replicas must agree",
    )
    queue_namespace: Annotated[str, AfterValidator(_namespace)] = variable(
        "SB_WORKER_QUEUE_NAMESPACE", default="dramatiq", meaning="prefix of Dramatiq's own keys"
    )

    @property
    def connections(self) -> int:
        """Connections of one process at most, to each of its two clients."""
        return max(self._asked or redis_dsn.DEFAULT_CONNECTIONS, LEAST_CONNECTIONS)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was taken as another value, and what of this is not as it was asked for, or should be."""
        unverified = ("REDIS_URL: skip_verify lets any server pass for Redis",) if not self.url.verified else ()
        return (*super().warnings, *_too_few("REDIS_POOL_SIZE", self._asked), *unverified)

    @property
    def _asked(self) -> int | None:
        return self.pool_size or self.url.max_connections

    def current_url(self) -> RedisUrl:
        """Return the URL as it is now: that of REDIS_URL_FILE is read anew."""
        url: RedisUrl = self.current("url")
        return url


def _too_few(name: str, asked: int | None) -> tuple[str, ...]:
    if asked is None or asked >= LEAST_CONNECTIONS:
        return ()
    return (f"{name}: a worker needs {LEAST_CONNECTIONS} connections at least, and takes them",)
