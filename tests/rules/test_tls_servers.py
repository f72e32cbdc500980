"""PostgreSQL and Redis by TLS: what each way to ask for it lets in, and what it does not."""

from __future__ import annotations

from datetime import timedelta
from urllib.parse import urlsplit

import pytest
import redis as redis_py

from app.core.errors import BootError
from app.storage import postgres
from app.storage.postgres_dsn import parse_database_url
from app.storage.redis import connect
from app.storage.redis_dsn import parse_redis_url
from app.storage.redis_reasons import explain
from app.storage.settings import DatabaseSettings, RedisSettings
from tests.rules.certificates import BAD, GOOD
from tests.rules.tls_front import TlsFront
from tests.support.rights.acl import GrantedRedis
from tests.support.tls import Authority
from tests.support.waiting import HUNG

KINDS = {"good": GOOD, **BAD}
UNKNOWN, NAME, EXPIRED = BAD
#: What each sslmode refuses, as pgx does: `require` encrypts and no more, unless it is told who is trusted.
MODES = {
    "sslmode=verify-full&sslrootcert={ca}": {UNKNOWN, NAME, EXPIRED},
    "sslmode=verify-ca&sslrootcert={ca}": {UNKNOWN, EXPIRED},
    "sslmode=require&sslrootcert={ca}": {UNKNOWN, EXPIRED},
    "sslmode=require": set[str](),
}
WORDS = {UNKNOWN: "not of an authority", NAME: "for another name", EXPIRED: "has expired, or is not valid yet"}


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """Return one that is trusted and one that is not."""
    trusted, other = (Authority(tmp_path_factory.mktemp("ca")) for _ in range(2))
    return trusted, other


@pytest.fixture
def login(database: str) -> str:
    """Return a URL of the database without its port."""
    url = urlsplit(database)
    return f"{url.scheme}://{url.username}@127.0.0.1:{{port}}{url.path}"


@pytest.mark.parametrize("mode", MODES)
def test_postgresql_is_verified_as_sslmode_says(
    mode: str, authorities: tuple[Authority, Authority], database: str, login: str
) -> None:
    behind = urlsplit(database).port or 0
    for kind, shown in KINDS.items():
        with TlsFront(behind, shown(*authorities, "127.0.0.1"), postgres=True) as front:
            url = f"{login.format(port=front.port)}?{mode.format(ca=authorities[0].file)}"
            settings = DatabaseSettings(url=parse_database_url(url))
            if kind in MODES[mode]:
                with pytest.raises(BootError, match=WORDS[kind]):
                    postgres.connect(settings, timedelta(seconds=HUNG)).close()
                assert front.heard == 0
            else:
                with postgres.connect(settings, timedelta(seconds=HUNG)) as connection:
                    assert connection.pgconn.ssl_in_use
                assert front.heard > 0


@pytest.mark.parametrize(("query", "refused"), [("", {UNKNOWN, NAME, EXPIRED}), ("?skip_verify=true", set[str]())])
def test_redis_is_verified_unless_an_operator_says_otherwise(
    query: str,
    refused: set[str],
    authorities: tuple[Authority, Authority],
    redis_server: GrantedRedis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authorities[0].file))
    for kind, shown in KINDS.items():
        with TlsFront(redis_server.port, shown(*authorities, "127.0.0.1")) as front:
            plain = redis_server.url().replace(f":{redis_server.port}/", f":{front.port}/")
            settings = RedisSettings(url=parse_redis_url(plain.replace("redis:", "rediss:") + query))
            with connect(settings, answer_within=timedelta(seconds=HUNG)) as client:
                if kind in refused:
                    with pytest.raises(redis_py.RedisError) as error:
                        client.ping()
                    assert WORDS[kind] in explain(error.value)
                    assert front.heard == 0
                else:
                    assert client.ping()
                    assert front.heard > 0
