"""What a command meets is a line for its operator: no traceback, no value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import psycopg
import pytest
import redis as redis_py
from click.testing import CliRunner, Result
from psycopg import Connection
from psycopg_pool import PoolTimeout

from app.cli.guard import GuardedGroup
from app.cli.main import main
from app.core.errors import BootError, SchemaError
from tests.support.rights.grants import as_role

CANARY = "hunter2"


@pytest.fixture
def command(database: str, role: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Result]:
    monkeypatch.setenv("DATABASE_URL", as_role(database, role))
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    return lambda words: CliRunner().invoke(main, words.split())


WORDS = ["migrate", "notify explain", "notify log", "notify log --sums", "dead list", "dead show 1"]
WORDS += ["dead replay 1", "dead purge 1"]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("right", ["", "GRANT USAGE ON SCHEMA secrets_bridge_worker TO", "version"])
def test_a_role_without_rights_gets_a_line(
    words: str, right: str, command: Callable[[str], Result], role: str, sql: Connection[Any]
) -> None:
    if right:
        sql.execute(f"GRANT USAGE ON SCHEMA secrets_bridge_worker TO {role}".encode())
    if right == "version":
        sql.execute(f"GRANT SELECT ON secrets_bridge_worker.schema_version TO {role}".encode())
    result = command(words)
    assert isinstance(result.exception, SystemExit) or result.exit_code == 0
    if (words, right) != ("migrate", "version"):
        assert result.exit_code == 1
        assert result.output.startswith("error: ")


def test_an_id_that_no_delivery_can_have_is_wrong_usage(command: Callable[[str], Result]) -> None:
    assert command("dead show 99999999999999999999").exit_code == 2


def _invoke(error: BaseException) -> Result:
    @click.group(cls=GuardedGroup)
    def group() -> None:
        pass

    @group.command()
    def fail() -> None:
        raise error

    return CliRunner().invoke(group, ["fail"])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BootError("no server"), "no server"),
        (SchemaError("no schema", "SELECT 1"), "no schema\nSELECT 1"),
        (psycopg.errors.UndefinedTable(CANARY), "a table is missing; run `sb-worker migrate`, and `sb-worker check`"),
        (psycopg.errors.NumericValueOutOfRange(CANARY), "a value is out of range (NumericValueOutOfRange 22003)"),
        (psycopg.OperationalError(CANARY), "PostgreSQL cannot be reached, or went away (OperationalError)"),
        (PoolTimeout(CANARY), "PostgreSQL cannot be reached (PoolTimeout)"),
        (redis_py.ConnectionError(CANARY), "Redis cannot be reached or refuses us (ConnectionError)"),
        (KeyError(CANARY), "KeyError in "),
        (OSError(CANARY), "OSError in "),
    ],
)
def test_an_error_is_a_line(error: BaseException, line: str) -> None:
    result = _invoke(error)
    assert result.exit_code == 1
    assert result.output.startswith(f"error: {line}")
    assert CANARY not in result.output


def test_what_click_has_its_own_line_for_keeps_it() -> None:
    assert _invoke(click.BadParameter("wrong")).exit_code == 2
    assert _invoke(KeyboardInterrupt()).output.strip() == "Aborted!"
    assert _invoke(SystemExit(3)).exit_code == 3
    assert _invoke(BrokenPipeError(32, "gone")).output == ""
