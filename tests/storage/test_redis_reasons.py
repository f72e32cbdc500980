"""Why Redis cannot be used: what failed is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from app.storage.redis import connect
from app.storage.redis_dsn import parse_redis_url
from app.storage.redis_reasons import explain
from app.storage.settings import RedisSettings
from tests.storage.test_redis import server
from tests.storage.tls_servers import tls_redis
from tests.support.proxy import answering
from tests.support.tls import Authority
from tests.support.waiting import HUNG

LOGIN = "the user or the password is wrong"
CLOSED = "the connection is closed, or what listens there is not Redis; a port with TLS needs rediss://"
NO_TLS = "there is no TLS handshake; is that a port with TLS? redis:// is without"
NOT_TRUSTED = "the server's certificate is not of an authority of this system; SSL_CERT_FILE names others"
NO_DATABASE = "the server has no database of the number in the URL"


def failure(url: str, seconds: float = HUNG, *command: str) -> str:
    settings = RedisSettings(url=parse_redis_url(url))
    with connect(settings, answer_within=timedelta(seconds=seconds)) as client:
        with pytest.raises(redis_py.RedisError) as refused:
            client.execute_command(*(command or ("PING",)))
        return explain(refused.value)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def with_tls(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Return the ports of a Redis: without TLS, and with it for the name localhost."""
    with tls_redis(tmp_path_factory.mktemp("redis"), authority, "localhost") as (running, port):
        yield running.port, port


def test_certificates_are_verified_by_the_systems_authorities(
    with_tls: tuple[int, int], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, port = with_tls
    assert failure(f"rediss://localhost:{port}") == NOT_TRUSTED
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with connect(
        RedisSettings(url=parse_redis_url(f"rediss://localhost:{port}/1")), answer_within=timedelta(seconds=HUNG)
    ) as ok:
        assert ok.ping()
    assert failure(f"rediss://127.0.0.1:{port}") == "the server's certificate is for another name than the URL's"


def test_skip_verify_takes_any_certificate(with_tls: tuple[int, int]) -> None:
    url = parse_redis_url(f"rediss://127.0.0.1:{with_tls[1]}?skip_verify=true")
    with connect(RedisSettings(url=url), answer_within=timedelta(seconds=HUNG)) as client:
        assert client.ping()


def test_tls_and_none_are_told_apart(with_tls: tuple[int, int]) -> None:
    plain, tls = with_tls
    assert failure(f"rediss://localhost:{plain}", 1.0) == NO_TLS
    assert failure(f"redis://localhost:{tls}") == CLOSED


def test_an_expired_certificate_is_told(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    dates: dict[str, Any] = {"not_before": now - timedelta(days=2), "not_after": now - timedelta(days=1)}
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with tls_redis(tmp_path, authority, "localhost", **dates) as (_, port):
        assert failure(f"rediss://localhost:{port}") == "the server's certificate has expired, or is not valid yet"


def test_what_a_server_refuses_is_told(tmp_path: Path) -> None:
    with server(tmp_path / "r") as running, redis_py.Redis(port=running.port) as admin:
        at = f"127.0.0.1:{running.port}"
        assert failure(f"redis://{at}/999") == NO_DATABASE
        assert failure(f"redis://:pw@{at}") == "the URL has a password, and the server none"
        assert failure(f"redis://user:pw@{at}") == LOGIN
        acl: Any = admin.acl_setuser
        acl("user", enabled=True, passwords=["+pw"], commands=["+ping"])
        lacking = "the user of the URL lacks rights; `sb-worker check` shows the ACL that suffices"
        assert failure(f"redis://user:pw@{at}", HUNG, "TIME") == lacking
        assert failure(f"redis://user:pw@{at}/1") == lacking
        admin.replicaof("127.0.0.1", "1")
        assert failure(f"redis://{at}", HUNG, "SET", "a", "b").startswith("a replica, which takes no writes")
        admin.replicaof("NO", "ONE")
        admin.config_set("requirepass", "one")
        assert failure(f"redis://{at}") == "a password is needed; put it into the URL"
        assert failure(f"redis://:two@{at}") == LOGIN
        admin.config_set("maxclients", "1")
        assert failure(f"redis://:one@{at}") == "the server has no connection left"


def test_a_cluster_has_one_database(tmp_path: Path) -> None:
    with server(tmp_path / "r", "--cluster-enabled", "yes") as running:
        text = failure(f"redis://127.0.0.1:{running.port}/1")
    assert text in (NO_DATABASE, "a cluster has database 0 alone, and the URL has another number")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://127.0.0.1:1", "the connection is refused"),
        ("redis://name.invalid", "the host name is not known"),
        ("unix:///nowhere/redis.sock", "there is no server at that socket"),
    ],
)
def test_a_server_that_is_not_there_is_told(url: str, text: str) -> None:
    assert failure(url) == text


@pytest.mark.parametrize(
    ("words", "scheme", "text"),
    [
        (None, "redis", "no answer in time"),
        (None, "rediss", NO_TLS),
        (b"", "redis", CLOSED),
        (b"", "rediss", NO_TLS),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "redis", CLOSED),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "rediss", NO_TLS),
        (b"-DENIED Redis is running in protected mode\r\n", "redis", "the server is in protected mode"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "redis", "the server is starting up"),
        (b"-ODD words that nobody knows\r\n", "redis", "the server refuses us (ResponseError)"),
    ],
)
def test_what_answers_oddly_is_told(words: bytes | None, scheme: str, text: str) -> None:
    with answering(words) as port:
        assert failure(f"{scheme}://:pw@127.0.0.1:{port}", 1.0 if words is None else HUNG).startswith(text)
