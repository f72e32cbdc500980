"""What the commands that look back share: their connection, their options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from actors import SWEEPERS
from app.cli.steering.operator import check_schema
from app.cli.values import Length
from app.core.logging import configure_logging
from app.storage import postgres
from app.worker.loading import Loaded, load
from sinks import SINKS

if TYPE_CHECKING:
    from psycopg import Connection

Option = Callable[[Callable[..., None]], Callable[..., None]]

#: How long a statement is waited for; it has a shorter limit of its own.
_ANSWER_WITHIN = timedelta(seconds=15)


@contextmanager
def past() -> Iterator[tuple[Loaded, Connection[Any]]]:
    """Yield every setting and a connection to a database that has our schema. Raises BootError, ConfigError."""
    configure_logging("error")
    loaded = load(SWEEPERS, SINKS)
    with postgres.connect(loaded.database, _ANSWER_WITHIN) as connection:
        check_schema(connection)
        yield loaded, connection


def since_option(default: str | None) -> Option:
    """Return the option that says how far to look back."""
    return click.option(
        "--since", "window", type=Length(), default=default, show_default=default is not None, metavar="TIME",
        help="How far to look back, such as 90s, 15m or 24h.",
    )  # fmt: skip


def output_option(*forms: str) -> Option:
    """Return the option that says how to print; without it the first form, on a terminal and in a pipe."""
    return click.option(
        "-o", "--output", "form", type=click.Choice([*forms, "json"]), default=forms[0], show_default=True
    )
