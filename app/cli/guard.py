"""The one place where a command's error becomes a line for its operator; a traceback would quote values."""

from __future__ import annotations

import errno
import sys
import traceback
from pathlib import Path
from typing import Any

import click
import psycopg
import redis
from psycopg_pool import PoolTimeout

from app.core.errors import ConfigError, SchemaError, WorkerError, describe
from app.storage.redis_reasons import reason
from app.worker.loading import refuse

_ROOT = Path(__file__).parents[2]
#: What to do about an error of PostgreSQL, the most special class first.
_POSTGRES: tuple[tuple[type[psycopg.Error], str], ...] = (
    (psycopg.errors.InsufficientPrivilege, "this role lacks a privilege; `sb-worker check` says which"),
    (psycopg.errors.UndefinedTable, "a table is missing; run `sb-worker migrate`, and `sb-worker check`"),
    (psycopg.errors.InvalidSchemaName, "the schema secrets_bridge_worker is missing; run `sb-worker migrate`"),
    (psycopg.errors.ReadOnlySqlTransaction, "the server takes no writes; is it a standby?"),
    (psycopg.errors.DataError, "a value is out of range"),
    (psycopg.OperationalError, "PostgreSQL cannot be reached, or went away"),
    (psycopg.Error, "PostgreSQL refuses"),
)


class GuardedGroup(click.Group):
    """A group whose commands end with status 1 and a line for whatever they raise."""

    def invoke(self, ctx: click.Context) -> Any:
        """Invoke the command; click's own exceptions, which have their own lines, pass."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except ConfigError as error:
            refuse(error)
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # click ends quietly when the reader of a pipe has gone
            click.echo(f"error: {_line(error)}", err=True)
            if isinstance(error, SchemaError) and error.sql:
                click.echo(error.sql, err=True)
        sys.exit(1)


def _line(error: Exception) -> str:
    if isinstance(error, WorkerError):
        return str(error)
    name = " ".join(filter(None, describe(error)))
    if isinstance(error, PoolTimeout):
        return f"PostgreSQL cannot be reached ({name})"
    if isinstance(error, psycopg.Error):
        text = next(text for kind, text in _POSTGRES if isinstance(error, kind))
        return f"{text} ({name})"
    if isinstance(error, redis.RedisError):
        return f"Redis cannot be reached or refuses us ({reason(error)})"
    return f"{name} in {_place(error)}: a fault of this program; please report this line"


def _place(error: Exception) -> str:
    """Return the last place in our own code on an error's way, as file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(_ROOT / "app")] or frames
    return f"{own[-1].filename.removeprefix(f'{_ROOT}/')}:{own[-1].lineno}"
