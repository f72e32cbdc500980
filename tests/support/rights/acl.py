"""A Redis with the user of deploy/redis.acl, as an operator who has a file of users starts it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import redis

from app.demo.servers import Redis
from tests.support.processes import ROOT

ACL = ROOT / "deploy" / "redis.acl"
#: Nothing may show it.
PASSWORD = "canary-redis-password"
USER = ACL.read_text(encoding="utf-8").split()[1]


def users() -> str:
    """Return the file of users once it is filled in: the one in it has PASSWORD, where it had none."""
    return ACL.read_text(encoding="utf-8").replace("resetpass", f"resetpass >{PASSWORD}")


class GrantedRedis(Redis):
    """A server whose URL is that of the user of deploy/redis.acl; a test's own client is of the default user."""

    def __init__(
        self, directory: Path, *, port: int | None = None, program: Path | None = None, options: Sequence[str] = ()
    ) -> None:
        file = directory / "users.acl"
        file.write_text(users(), encoding="utf-8")
        super().__init__(directory, port=port, program=program, options=[*options, "--aclfile", str(file)])

    def url(self, database: int = 0) -> str:
        """Return a REDIS_URL of the user."""
        return super().url(database).replace("//", f"//{USER}:{PASSWORD}@")

    def owner_url(self, database: int = 0) -> str:
        """Return the URL of the default user, who may do everything."""
        return super().url(database)


def as_user(client: redis.Redis) -> redis.Redis:
    """Return a client of the same server as the user of deploy/redis.acl, for what is under test."""
    place = client.connection_pool.connection_kwargs
    return redis.Redis(host=place["host"], port=place["port"], db=place.get("db", 0), username=USER, password=PASSWORD)
