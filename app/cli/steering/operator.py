"""What the commands about runs share: who types them, which sweeper is meant, and the servers that they ask."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from actors import SWEEPERS
from app.core.errors import BootError
from app.core.logging import configure_logging
from app.storage import migrations, postgres
from app.sweeping.sweeper import Sweeper, SweeperSettings
from app.worker.loading import Loaded, load
from sinks import SINKS

if TYPE_CHECKING:
    from psycopg import Connection

    from app.storage.settings import DatabaseSettings

#: Characters of who did something: it stands in a table.
_MOST_WHO = 200


def who() -> str:
    """Return user@host of whoever types the command, as far as the system knows them."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user need not have a name
        user = f"uid {os.getuid()}"
    text = f"{user}@{socket.gethostname()}"
    return "".join(character if character.isprintable() else "?" for character in text)[:_MOST_WHO]


def moment(time: datetime) -> str:
    """Return a time as an operator reads it, in UTC."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"


def settings_of(name: str) -> tuple[Loaded, Sweeper[Any], SweeperSettings]:
    """Return all settings, and one sweeper with its own. Raises ConfigError."""
    configure_logging("error")
    loaded = load(SWEEPERS, SINKS)
    pairs = zip(SWEEPERS, loaded.sweepers, strict=True)
    sweeper, settings = next(pair for pair in pairs if pair[0].name == name)
    return loaded, sweeper, settings


def chosen(name: str) -> list[str]:
    """Return the names that a name, or `all`, stands for."""
    return [sweeper.name for sweeper in SWEEPERS] if name == "all" else [name]


def refuse_off(sweeper: Sweeper[Any], settings: SweeperSettings) -> None:
    """Raise BootError when the sweeper is not registered with these settings."""
    if not settings.enabled:
        raise BootError(f"{sweeper.name} is off; {settings.switch} switches it on")


@contextmanager
def ledger(settings: DatabaseSettings) -> Iterator[Connection[Any]]:
    """Yield a connection to a database with our schema. Raises BootError."""
    with postgres.connect(settings) as connection:
        check_schema(connection)
        yield connection


def check_schema(connection: Connection[Any]) -> None:
    """Raise BootError when our schema is missing or older than this release."""
    if migrations.installed(connection) < migrations.VERSION:
        raise BootError("the schema secrets_bridge_worker is not up to date; run `sb-worker migrate`")
