"""Why there is no connection to PostgreSQL: what failed is told, whatever the names in the server's text are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from app.core.errors import BootError
from app.demo.servers import Postgres
from app.storage import postgres
from app.storage.postgres_dsn import parse_database_url
from app.storage.postgres_reasons import reason
from app.storage.settings import DatabaseSettings
from tests.storage.tls_servers import tls_postgres
from tests.support.proxy import answering
from tests.support.tls import Authority

PREFIX = "DATABASE_URL: PostgreSQL cannot be reached: "
LOGIN, DATABASE, ROLE = "the user or the password is wrong", "the database does not exist", "the role does not exist"
TLS_ONLY = "the server lets this client in by TLS only; set sslmode=require, or a stricter one"
NO_ENTRY = "the server's pg_hba.conf does not let this client in"
REFUSED, CLOSED = "the connection is refused", "the server, or what is before it, closes the connection at once"
NOT_TRUSTED = "the server's certificate is not of an authority in sslrootcert, nor else of this system"
OTHER_NAME = "the server's certificate is for another name than the URL's, which sslmode=verify-full compares"
SETTING = "the server or pooler refuses a setting that the URL carries"
FULL, WANTS_CERTIFICATE = "the server or pooler has no connection left", "the server wants a client's certificate"
NO_TLS = "the server does not speak TLS, which sslmode asks for"
#: Texts of libpq for faults that are another one's.
ODD_NAMES = ["certificate", "timeout", "starting up", "refused", "password authentication failed", "too many"]


def failure(text: str) -> str:
    settings = DatabaseSettings(url=parse_database_url(text))
    with pytest.raises(BootError) as refused:
        postgres.connect(settings, timedelta(seconds=2)).close()
    return str(refused.value).removeprefix(PREFIX)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[Postgres]:
    with tls_postgres(authority, "localhost") as running:
        yield running


@pytest.mark.parametrize(
    ("rest", "text"),
    [
        ("login:wrong@{at}/secrets_bridge", LOGIN),
        ("login@{at}/secrets_bridge", "a password is needed"),
        ("postgres@{at}/nowhere", DATABASE),
        ("stranger@{at}/secrets_bridge?sslmode=disable", TLS_ONLY),
        ("stranger@{at}/secrets_bridge?sslmode=require", NO_ENTRY),
        ("tls@{at}/secrets_bridge?sslmode=disable", TLS_ONLY),
        ("dumb@{at}/secrets_bridge", "the role may not log in; it needs LOGIN"),
        ("limited@{at}/secrets_bridge", FULL),
        ("tls@{at}/closed", "the role may not connect to this database; it needs CONNECT on it"),
        ("postgres@{at}/shut", "the server takes no connections now"),
        ("certified@{at}/secrets_bridge?sslmode=require", WANTS_CERTIFICATE),
        ("postgres@{at}/secrets_bridge?no_such_setting=1", SETTING),
        ("postgres@{at}/secrets_bridge?work_mem=much", SETTING),
        (
            "postgres@{at}/secrets_bridge?target_session_attrs=standby",
            "no server is what target_session_attrs asks for",
        ),
        (
            "login:right@{at}/secrets_bridge?require_auth=md5",
            "the server asks for another way to log in than require_auth",
        ),
        ("postgres@{at}/secrets_bridge?channel_binding=require", "channel_binding=require needs TLS"),
        ("tls@{at}/secrets_bridge?sslmode=verify-full", NOT_TRUSTED),
        ("tls@{at}/secrets_bridge?sslmode=verify-ca", NOT_TRUSTED),
        ("tls@127.0.0.1:{port}/secrets_bridge?sslmode=verify-full&sslrootcert={ca}", OTHER_NAME),
        ("postgres@127.0.0.1:1/secrets_bridge", REFUSED),
        ("postgres@127.0.0.1:1,localhost:{port}/nowhere", f"{REFUSED}; {DATABASE}"),
        ("postgres@name.invalid/d", "the host name is not known"),
        ("postgres@%2Fnowhere/d", "there is no server at that socket"),
    ],
)
def test_what_failed_is_told(rest: str, text: str, server: Postgres, authority: Authority) -> None:
    url = "postgres://" + rest.format(at=f"localhost:{server.port}", port=server.port, ca=authority.file)
    assert failure(url).startswith(text)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_not_taken_for_a_fault(name: str, server: Postgres) -> None:
    at = f"localhost:{server.port}"
    assert failure(f"postgres://postgres@{at}/{name}") == DATABASE
    assert failure(f"postgres://{quote(name)}@{at}/d?sslmode=require") == NO_ENTRY
    assert failure(f"postgres://{quote(name)}:x@127.0.0.1:1/{name}") == REFUSED


def test_without_sslrootcert_the_systems_authorities_are_asked(
    server: Postgres, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    for mode in ("verify-full", "verify-ca", "require&sslrootcert=system"):
        url = parse_database_url(f"postgres://tls@localhost:{server.port}/secrets_bridge?sslmode={mode}")
        with postgres.connect(DatabaseSettings(url=url)) as connection:
            assert connection.pgconn.ssl_in_use


def test_authorities_may_be_in_a_directory(
    server: Postgres, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.pem").write_bytes(authority.file.read_bytes())
    monkeypatch.setenv("SSL_CERT_DIR", f"/nowhere:{tmp_path}")
    url = parse_database_url(f"postgres://tls@localhost:{server.port}/secrets_bridge?sslmode=verify-full")
    postgres.connect(DatabaseSettings(url=url)).close()


def test_a_wrong_authority_does_not_lead_to_plain_text(server: Postgres, tmp_path: Path) -> None:
    """Unlike libpq, pgx does not verify without being told to, and then does not fall back."""
    other = Authority(tmp_path)
    for mode in ("prefer", "allow"):
        url = parse_database_url(f"postgres://tls@localhost:{server.port}/d?sslmode={mode}&sslrootcert={other.file}")
        if mode == "prefer":
            with pytest.raises(BootError, match=DATABASE):  # over TLS, or this role would not be let in
                postgres.connect(DatabaseSettings(url=url))
    assert failure(f"postgres://tls@localhost:{server.port}/d?sslmode=require&sslrootcert={other.file}") == NOT_TRUSTED


def test_a_client_shows_its_certificate_whose_key_others_may_read(
    server: Postgres, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.files(tmp_path, "client.example", common_name="certified")
    key.chmod(0o644)
    url = f"postgres://certified@localhost:{server.port}/secrets_bridge?sslmode=require&sslcert={certificate}&sslkey={key}"
    postgres.connect(DatabaseSettings(url=parse_database_url(url))).close()


@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_a_list_of_passwords_is_read_whatever_its_mode(
    mode: int, server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".pgpass"
    file.write_text("localhost:*:*:login:right\n")
    file.chmod(mode)
    url = f"postgres://login@localhost:{server.port}/secrets_bridge"
    named = DatabaseSettings(url=parse_database_url(f"{url}?passfile={file}"))
    postgres.connect(named).close()
    file.write_text("localhost:*:*:login:wrong\n")
    assert failure(f"{url}?passfile={file}") == LOGIN
    file.write_text("localhost:*:*:login:right\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    postgres.connect(DatabaseSettings(url=parse_database_url(url))).close()


def test_an_expired_certificate_is_not_taken(authority: Authority) -> None:
    now = datetime.now(UTC)
    dates = {"not_before": now - timedelta(days=2), "not_after": now - timedelta(days=1)}
    with tls_postgres(authority, "localhost", **dates) as expired:
        url = f"postgres://tls@localhost:{expired.port}/d?sslmode=verify-ca&sslrootcert={authority.file}"
        assert failure(url) == "the server's certificate has expired, or is not valid yet"


def test_a_server_without_tls_is_told(postgres: Postgres) -> None:
    assert failure(f"{postgres.url()}?sslmode=require") == NO_TLS


@pytest.mark.parametrize(
    ("words", "mode", "text"),
    [
        (None, "disable", "no answer in time; connect_timeout in the URL allows more"),
        (b"", "disable", CLOSED),
        (b"", "require", CLOSED),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "disable", "what listens there is not PostgreSQL"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "require", "what listens there is not PostgreSQL"),
        (b"S-no-tls", "require", "there is no TLS handshake; is that the port of PostgreSQL"),
    ],
)
def test_what_is_no_postgresql_is_told(words: bytes | None, mode: str, text: str) -> None:
    with answering(words) as port:
        assert failure(f"postgres://u@127.0.0.1:{port}/d?sslmode={mode}").startswith(text)


AT = 'connection to server at "h" (10.0.0.1), port 6432 failed: '


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("FATAL:  no such user", LOGIN),
        ("FATAL:  SASL authentication failed", LOGIN),
        ('FATAL:  Peer authentication failed for user "x"', LOGIN),
        ('FATAL:  database "timeout" does not exist', DATABASE),
        ('FATAL:  role "too many" does not exist', ROLE),
        ("FATAL:  no such database: password", DATABASE),
        ("FATAL:  SSL required", TLS_ONLY),
        ("FATAL:  sorry, too many clients already", FULL),
        ("FATAL:  no more connections allowed (max_client_conn)", FULL),
        ("FATAL:  unsupported startup parameter: options", SETTING),
        ("FATAL:  server login has been failing, cached error: no", "the pooler cannot log in to the server behind it"),
        ("FATAL:  the database system is starting up", "the server is starting up"),
        ("FATAL:  the database system is not yet accepting connections", "the server takes no connections now"),
        ("FATAL:  Tenant is a certificate that timed out", "the server refuses, for a reason that is in its log"),
        ('FATAL:  certificate authentication failed for user "x"', WANTS_CERTIFICATE),
        ("ВАЖНО:  база данных не существует", "the server refuses, for a reason that is in its log"),
        ("Connection refused\n\tIs the server running there?\n", REFUSED),
        (f"Connection refused\n\tIs it?\n{AT}FATAL:  no such user", f"{REFUSED}; {LOGIN}"),
        ("words that nobody knows", "OperationalError"),
    ],
)
def test_what_poolers_and_others_say_is_understood(said: str, text: str) -> None:
    assert reason(psycopg.OperationalError(f"connection failed: {AT}{said}")).startswith(text)
