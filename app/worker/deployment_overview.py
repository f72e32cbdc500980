"""The overview of the deployment that this process works for, by its own connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg_pool import PoolTimeout

from app.overview import reading
from app.overview.model import Overview
from app.overview.views import Asked

if TYPE_CHECKING:
    import redis
    from psycopg import Connection
    from psycopg_pool import ConnectionPool

#: Seconds that a free connection is waited for.
_CONNECTION_WITHIN = 1.0


def read(pool: ConnectionPool[Connection[Any]], client: redis.Redis, asked: Asked) -> Overview:
    """Return an overview, judged. Without PostgreSQL it has servers and problems only. Takes some seconds at most."""
    try:
        with pool.connection(timeout=_CONNECTION_WITHIN) as connection:
            return reading.read(connection, client, asked)
    except (psycopg.Error, PoolTimeout):
        return reading.read(None, client, asked)
