"""DATABASE_URL: each row of docs/go-settings.md, in each place where the parameter may stand."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import trustme
from psycopg.conninfo import conninfo_to_dict

from app.storage import postgres_parameters
from app.storage.files.private import copy
from app.storage.postgres_dsn import ENVIRONMENT, parse_database_url
from app.storage.postgres_parameters import DatabaseUrl
from tests.storage.go_settings import rows

ROWS = {row[0]: row[1] for row in rows("DATABASE_URL")}
NOTHING: dict[str, str] = {}


class Taken(NamedTuple):
    """A value that is taken: what libpq gets of it, and what else follows."""

    value: str
    libpq: dict[str, str]
    beside: dict[str, Any] = {}  # noqa: RUF012 - of a tuple, and not changed


def same(key: str, *values: str) -> list[Taken]:
    return [Taken(value, {key: value}) for value in values]


def ignored(*values: str) -> list[Taken]:
    return [Taken(value, NOTHING) for value in values]


DURATIONS = ignored("1h30m", "0", "-1s")
TAKEN: dict[str, list[Taken]] = {
    "host": [Taken("a,b", {"host": "a,b"}), Taken("/run/pg", {"host": "/run/pg"})],
    "port": same("port", "5433"),
    "database": [Taken("d", {"dbname": "d"})],
    "user": same("user", "u"),
    "password": same("password", "p"),
    "passfile": same("passfile", "{own}"),
    "connect_timeout": [
        Taken("15", NOTHING, {"connect_seconds": 15}),
        Taken("0", NOTHING, {"connect_seconds": None}),
        Taken("99999", NOTHING, {"connect_seconds": 120}),
    ],
    "sslmode": [
        *same("sslmode", "disable", "allow", "prefer", "require"),
        *same("sslmode", "verify-ca", "verify-full"),
    ],
    "sslrootcert": [
        Taken("{ca}", {"sslrootcert": "/nonexistent/root.crt"}),  # sslmode=prefer does not verify
        Taken("system", {"sslrootcert": "{roots}", "sslmode": "verify-full"}),
    ],
    "sslcert": [],
    "sslkey": [],
    "sslpassword": same("sslpassword", "p"),
    "sslsni": [Taken("1", {"sslsni": "1"}), Taken("true", {"sslsni": "0"})],
    "sslnegotiation": [
        Taken("direct", {"sslnegotiation": "direct", "sslmode": "require"}),
        Taken("odd", {"sslnegotiation": "postgres"}),  # of the variable libpq would hear by itself
    ],
    "target_session_attrs": same("target_session_attrs", "any", "read-write", "read-only", "primary", "prefer-standby"),
    "channel_binding": same("channel_binding", "disable", "prefer", "require"),
    "require_auth": [
        *same("require_auth", "scram-sha-256", "!md5,!password"),
        Taken("md5, none", {"require_auth": "md5,none"}),
    ],
    "min_protocol_version": same("min_protocol_version", "3.0", "3.2", "latest"),
    "max_protocol_version": same("max_protocol_version", "3.0", "3.2", "latest"),
    "service": [],
    "servicefile": [],
    "krbsrvname": same("krbsrvname", "postgres"),
    "krbspn": ignored("postgres/h"),
    "application_name": same("application_name", "mine"),
    "options": same("options", "-c x.y=1"),
    "timezone": [Taken("UTC", NOTHING, {"environment": {"PGTZ": "UTC"}})],
    "pool_max_conns": [Taken("4", NOTHING, {"max_connections": 4})],
    "pool_min_conns": ignored("2", "0", "-1"),
    "pool_min_idle_conns": ignored("2", "0", "-1"),
    "pool_max_conn_lifetime": DURATIONS,
    "pool_max_conn_lifetime_jitter": DURATIONS,
    "pool_max_conn_idle_time": DURATIONS,
    "pool_health_check_period": DURATIONS,
    "pool_ping_timeout": DURATIONS,
    "default_query_exec_mode": [
        Taken("cache_statement", NOTHING, {"prepare": True}),
        *(Taken(mode, NOTHING, {"prepare": False}) for mode in ("exec", "simple_protocol", "cache_describe")),
        Taken("describe_exec", NOTHING, {"prepare": False}),
    ],
    "statement_cache_capacity": [Taken("0", NOTHING, {"prepare": False}), Taken("512", NOTHING, {"prepare": True})],
    "description_cache_capacity": ignored("0", "512"),
}
DURATION = "is not a duration; accepted: a Go duration"
REFUSED: dict[str, list[tuple[str, str]]] = {
    "port": [
        ("http", "is not valid; accepted: a number from 1"),
        ("0", "is not valid"),
        ("1,2", "does not fit the hosts"),
    ],
    "connect_timeout": [(text, "is not valid; accepted: whole seconds") for text in ("5s", "-1", "1.5", "1_0")],
    "sslmode": [("no-verify", "is not valid; accepted: disable, allow, prefer, require, verify-ca, verify-full")],
    "sslrootcert": [("{missing}", "names a file that cannot be read"), ("{junk}", "names a file without certificates")],
    "sslcert": [("{cert}", "is needed: sslcert and sslkey go together")],
    "sslkey": [("{key}", "is needed: sslcert and sslkey go together")],
    "target_session_attrs": [("master", "is not valid; accepted: any, read-write, read-only, primary, standby")],
    "channel_binding": [("required", "is not valid; accepted: disable, prefer, require")],
    "require_auth": [("scram", "is not valid; accepted: some of password, md5"), ("md5,!none", "is not valid")],
    "min_protocol_version": [("3.1", "is not valid; accepted: 3.0, 3.2, latest")],
    "max_protocol_version": [("3", "is not valid; accepted: 3.0, 3.2, latest")],
    "service": [("missing", "names none of those in the service file")],
    "servicefile": [],
    "pool_max_conns": [
        (text, "is not valid; accepted: a number of at least 1") for text in ("0", "-1", "1_0", "hunter2")
    ],
    "pool_min_conns": [("hunter2", "is not valid; accepted: a number")],
    "pool_min_idle_conns": [("hunter2", "is not valid; accepted: a number")],
    "pool_max_conn_lifetime": [("60", DURATION)],
    "pool_max_conn_lifetime_jitter": [("60", DURATION)],
    "pool_max_conn_idle_time": [("60", DURATION)],
    "pool_health_check_period": [("60", DURATION)],
    "pool_ping_timeout": [("60", DURATION)],
    "default_query_exec_mode": [("prepare", "is not valid; accepted: cache_statement, exec")],
    "statement_cache_capacity": [("many", "is not valid; accepted: a number")],
    "description_cache_capacity": [("many", "is not valid; accepted: a number")],
}


class Files(NamedTuple):
    """Files that parameters name."""

    ca: str
    cert: str
    key: str
    junk: str
    missing: str
    own: str
    roots: str


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Return files, with a home that has none, and system's roots of the test's own."""
    authority, found = trustme.CA(), {name: str(tmp_path / name) for name in Files._fields}
    issued = authority.issue_cert("h")
    authority.cert_pem.write_to_path(found["ca"])
    issued.cert_chain_pems[0].write_to_path(found["cert"])
    issued.private_key_pem.write_to_path(found["key"])
    Path(found["junk"]).write_text("junk")
    Path(found["own"]).write_text("*:*:*:*:secret\n")
    Path(found["own"]).chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".pg_service.conf").write_text("[mine]\nhost=h\n")
    monkeypatch.setattr("app.storage.files.postgres.system_roots", lambda: found["ca"])
    return Files(**{**found, "roots": found["ca"]})


def in_the_url(key: str, value: str, **_: Any) -> str:
    host = "" if key in ("host", "service") else "h"
    return f"postgres://{host}?{key}={quote(value, safe='')}"


def among_pairs(key: str, value: str, **_: Any) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{'' if key == 'host' else 'host=h '}{key}='{escaped}'"


def in_a_service(key: str, value: str, *, directory: Path, **_: Any) -> str:
    file = directory / "service.conf"
    file.write_text(f"# services\n[other]\nport=1\n[mine]\n{key}={value}\n")
    return f"{'' if key == 'host' else 'host=h '}service=mine servicefile={file}"


def by_a_variable(key: str, value: str, *, monkeypatch: pytest.MonkeyPatch, **_: Any) -> str:
    monkeypatch.setenv(ROWS[key], value)
    return "sslsni=" if key == "host" else "host=h"


def cases(table: dict[str, list[Any]]) -> list[Any]:
    """Return each case, said in each of the ways that it can be said."""
    forms = {"url": in_the_url, "pairs": among_pairs, "service": in_a_service, "variable": by_a_variable}
    return [
        pytest.param(key, case, form, id=f"{key}={case[0]}-{name}")
        for key, found in table.items()
        for case in found
        for name, form in forms.items()
        if (ROWS.get(key) or name != "variable") and not (key.startswith("service") and name == "service")
    ]


def test_each_parameter_and_variable_has_its_row() -> None:
    canonical = {"dbname": "database"}
    assert {variable: canonical.get(key, key) for variable, key in ENVIRONMENT.items()} == {
        variable: key for key, variable in ROWS.items() if variable
    }
    own = {*postgres_parameters._WORDS, *postgres_parameters._NUMBERS, *postgres_parameters._DURATIONS}
    assert own <= set(ROWS)
    assert set(TAKEN) == set(ROWS)


@pytest.mark.parametrize(("key", "case", "form"), cases(TAKEN))
def test_what_pgx_takes_means_the_same(
    key: str, case: Taken, form: Any, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {name: value.format(**files._asdict()) for name, value in case.libpq.items()}
    if key == "sslmode" and case.value.startswith("verify"):
        expected["sslrootcert"] = files.roots
    value = case.value.format(**files._asdict())
    url = parse_database_url(form(key, value, directory=Path(files.own).parent, monkeypatch=monkeypatch))
    libpq = conninfo_to_dict(url.conninfo)
    rest = {"host": "h", "application_name": "secrets-bridge-worker"} | expected
    assert libpq == rest
    defaults: dict[str, Any] = {"max_connections": None, "prepare": True, "connect_seconds": None, "environment": {}}
    assert {name: getattr(url, name) for name in defaults} == defaults | case.beside


@pytest.mark.parametrize(("key", "case", "form"), cases(REFUSED))
def test_what_pgx_refuses_is_named_and_not_shown(
    key: str, case: tuple[str, str], form: Any, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, problem = case[0].format(**files._asdict()), case[1]
    with pytest.raises(ValueError, match=problem) as refused:
        parse_database_url(form(key, value, directory=Path(files.own).parent, monkeypatch=monkeypatch))
    said = str(refused.value)
    assert any(name in said for name in filter(None, (key, ROWS[key])))
    assert "hunter2" not in said


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="sslmode") as refused:
        parse_database_url("postgres://h?sslmode=no-verify&connect_timeout=5s&target_session_attrs=master")
    assert len(str(refused.value).splitlines()) == 3


def test_a_pair_of_certificate_and_key_is_tried(files: Files) -> None:
    url = parse_database_url(f"host=h sslcert={files.cert} sslkey={files.key}")
    copied = conninfo_to_dict(url.conninfo)["sslkey"]  # it may be read by others, so libpq would refuse it
    assert isinstance(copied, str)
    assert copied != files.key
    assert Path(copied).read_bytes() == Path(files.key).read_bytes()
    assert Path(copied).stat().st_mode & 0o777 == 0o600
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(files.cert, copied)
    with pytest.raises(ValueError, match="parameter sslkey is not the key of sslcert"):
        parse_database_url(f"host=h sslcert={files.cert} sslkey={files.junk}")
    with pytest.raises(ValueError, match="parameter sslkey names a file that cannot be read"):
        parse_database_url(f"host=h sslcert={files.cert} sslkey={files.missing}")


def test_the_files_of_a_home_are_used(files: Files, tmp_path: Path) -> None:
    home = tmp_path / "home" / ".postgresql"
    home.mkdir()
    Path(files.cert).rename(home / "postgresql.crt")
    assert parse_database_url("host=h").parameters["sslcertmode"] == "disable"
    Path(files.key).rename(home / "postgresql.key")
    Path(files.ca).rename(home / "root.crt")
    parameters = parse_database_url("host=h sslmode=verify-full").parameters
    assert parameters["sslrootcert"] == str(home / "root.crt")
    assert (parameters["sslcert"], parameters["sslkey"]) == (str(home / "postgresql.crt"), str(home / "postgresql.key"))


def test_tls_means_nothing_to_a_socket(files: Files) -> None:
    assert parse_database_url(f"host=/run/pg sslmode=verify-full sslrootcert={files.missing}").parameters


def test_without_authorities_that_is_said(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    del files
    monkeypatch.setattr("app.storage.files.postgres.system_roots", lambda: "")
    with pytest.raises(ValueError, match="parameter sslrootcert is needed: there are no certificates"):
        parse_database_url("host=h sslmode=verify-full")


def test_the_url_goes_before_the_service_and_that_before_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "service.conf"
    file.write_text("[mine]\ndatabase=of_the_service\nuser=of_the_service\npool_max_conns=3\nsearch_path=a\n")
    for name in ("PGDATABASE", "PGUSER", "PGAPPNAME"):
        monkeypatch.setenv(name, "of_the_variable")
    url = parse_database_url(f"host=h user=own service=mine servicefile={file}")
    assert url.max_connections == 3
    assert conninfo_to_dict(url.conninfo) == {
        "host": "h",
        "user": "own",
        "dbname": "of_the_service",
        "application_name": "of_the_variable",
        "options": "-c search_path=a",
    }


@pytest.mark.parametrize(
    ("there", "host"),
    [(["/var/run/postgresql", "/tmp"], "/var/run/postgresql"), (["/tmp"], "/tmp"), ([], "localhost")],
)
def test_without_a_host_the_first_of_the_usual_sockets_is_taken(
    there: list[str], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.postgres_parameters.Path.exists", lambda path: str(path) in there)
    assert conninfo_to_dict(parse_database_url("postgres:///d").conninfo)["host"] == host


def test_a_process_whose_user_has_no_name_must_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 2**31 - 7)
    with pytest.raises(ValueError, match="parameter user is needed"):
        parse_database_url("postgres://h/d")
    assert parse_database_url("postgres://u@h/d")


def test_a_url_of_databases_in_jdbcs_words() -> None:
    assert parse_database_url("postgres://h?ssl=true").parameters["sslmode"] == "require"


def test_it_is_one_value(files: Files) -> None:
    del files
    assert isinstance(parse_database_url("postgres://h"), DatabaseUrl)
    assert parse_database_url("postgres://h") == parse_database_url("postgres://h")


def test_a_copy_can_be_read_by_this_process_alone() -> None:
    path = copy("of the test", b"first, and longer")
    assert copy("of the test", b"second") == path
    assert Path(path).read_bytes() == b"second"
    assert Path(path).stat().st_mode & 0o777 == 0o600
