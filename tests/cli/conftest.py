"""What several tests of the command line need."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg import Connection


@pytest.fixture
def role(sql: Connection[Any]) -> Iterator[str]:
    """Yield the name of a role that may log in, and nothing else."""
    name = f"powerless_{secrets.token_hex(4)}"
    sql.execute(f"CREATE ROLE {name} LOGIN".encode())
    yield name
    sql.execute(f"DROP OWNED BY {name}".encode())
    sql.execute(f"DROP ROLE {name}".encode())
