"""What Vault's own Go client does by itself: tries again, follows to the active node, reads its variables."""

from __future__ import annotations

import asyncio
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import trustme

from app.core.errors import UnwrapFailed
from app.kms import vault
from app.kms.envelope import Envelope, open_token
from app.kms.settings import KmsSettings
from app.kms.transport import KeyServiceTransport
from tests.support.http_server import Receiver, Reply, Rude, Seen, silence
from tests.support.key_services import (
    CANARY,
    KEY,
    KEY_TEXT,
    SEALED,
    SOON,
    InTurn,
    answer,
    configured,
    refusal,
    unwrap,
    vault_at,
)
from tests.support.tls import Authority
from tests.support.waiting import eventually

GOOD = answer(200, data={"plaintext": KEY_TEXT})
QUOTA = answer(429, {"Retry-After": "0"}, errors=["rate limit quota exceeded"])
BACKEND = {
    "SB_KMS_BACKEND": "vault-transit",
    "SB_KMS_VAULT_ADDR": "https://vault.example",
    "SB_KMS_VAULT_TOKEN": CANARY,
    "SB_KMS_VAULT_KEY": "k",
}


def problems(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    return list(configured(monkeypatch, **{**BACKEND, **variables}).key_problems(dev=False))


def opened(settings: KmsSettings) -> bytearray:
    """Unwrap with the key manager and the TLS context of settings, as a run does."""

    async def run() -> bytearray:
        transport = KeyServiceTransport(settings.key_context, first_wait=SOON)
        try:
            return await settings.keys.unwrap(SEALED, "", transport)
        finally:
            await transport.close()

    return asyncio.run(run())


# ------------------------------------------------------------------------------------------------------ tries again


@pytest.mark.parametrize(
    "reply",
    [QUOTA, answer(429), answer(412), answer(500), answer(502), answer(503, {"Retry-After": "0"}), answer(599)],
    ids=lambda reply: f"{reply.status}-{reply.headers.get('Retry-After', 'none')}",
)
def test_what_passes_is_waited_for_within_the_run(reply: Reply) -> None:
    with Receiver(InTurn(reply, reply, GOOD)) as server:
        assert unwrap(vault_at(server.url)) == [KEY]
    assert len(server.seen) == 3


@pytest.mark.parametrize("reply", [QUOTA, answer(412)])
def test_a_limit_is_waited_for_more_often_than_failures_are_retried(reply: Reply) -> None:
    with Receiver(InTurn(*[reply] * 5, GOOD)) as server:
        assert unwrap(vault_at(server.url, vault.Options(retries=1))) == [KEY]
    assert len(server.seen) == 6


@pytest.mark.parametrize(("reply", "retries"), [(answer(501), 2), (answer(400), 2), (answer(500), 0), (QUOTA, 0)])
def test_what_does_not_pass_or_may_not_be_retried_is_asked_once(reply: Reply, retries: int) -> None:
    with Receiver(reply) as server:
        refusal(vault_at(server.url, vault.Options(retries=retries)))
    assert len(server.seen) == 1


def test_a_connection_that_is_cut_is_made_again() -> None:
    turns: list[int] = []

    def cut_twice(connection: socket.socket, over: threading.Event) -> None:
        del over
        connection.recv(65536)
        turns.append(1)
        if len(turns) > 2:
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(GOOD.body)}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode() + GOOD.body)

    with Rude(cut_twice) as server:
        assert unwrap(vault_at(server.url)) == [KEY]


def test_a_wait_that_is_longer_than_the_time_for_it_is_not_begun() -> None:
    with Receiver(answer(429, {"Retry-After": "3600"})) as server:
        told = refusal(vault_at(server.url))
    assert told == "vault limits the rate of requests (HTTP 429), for longer than a run can wait"
    assert len(server.seen) == 1


def test_what_failed_to_the_last_try_is_not_waited_for_by_others_until_it_answers() -> None:
    async def run(keys: vault.VaultKeys) -> None:
        transport = KeyServiceTransport(first_wait=SOON)
        for expected in (3, 4, 5):
            with pytest.raises(UnwrapFailed, match="sealed"):
                await keys.unwrap(SEALED, "", transport)
            assert len(server.seen) == expected
        server.answer = InTurn(GOOD)
        assert await keys.unwrap(SEALED, "", transport) == KEY
        server.answer = InTurn(answer(503), GOOD)
        assert await keys.unwrap(SEALED, "", transport) == KEY
        await transport.close()

    with Receiver(answer(503)) as server:
        asyncio.run(run(vault_at(server.url)))


def test_a_service_that_takes_all_the_time_of_one_token_is_not_asked_for_the_next() -> None:
    """Which a long VAULT_CLIENT_TIMEOUT would let it do."""

    async def run(keys: vault.VaultKeys) -> list[str]:
        transport, told = KeyServiceTransport(deadline=0.1), []
        for _ in range(3):
            with pytest.raises(UnwrapFailed) as refused:
                await open_token(Envelope(bytes(16), bytes(12), SEALED, ""), keys, transport)
            told.append(str(refused.value))
        await transport.close()
        return told

    with Rude(silence) as server:
        first, *others = asyncio.run(run(vault_at(server.url, vault.Options(seconds=3600))))
        eventually(lambda: server.connections == 1)
    assert first == "no data key within 0.3s"
    assert set(others) == {"vault cannot be reached, as found before in this run"}


# -------------------------------------------------------------------------------------------------- the active node


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_standby_that_names_the_active_node_is_followed_once(status: int) -> None:
    with Receiver(GOOD) as active, Receiver() as standby:
        standby.answer = Reply(status, b"", {"Location": f"{active.url}/v1/transit/decrypt/k"})
        assert unwrap(vault_at(standby.url, namespace="eu")) == [KEY]
    (seen,) = active.seen
    assert (seen.method, seen.json) == ("POST", {"ciphertext": SEALED.decode()})
    assert (seen.headers["x-vault-token"], seen.headers["x-vault-namespace"]) == (CANARY, "eu")


def test_a_second_redirect_and_one_that_is_not_to_be_followed_are_answers() -> None:
    with Receiver() as server:
        server.answer = Reply(307, b"", {"Location": "/v1/elsewhere"})
        assert refusal(vault_at(server.url)) == "vault answers HTTP 307"
        assert [seen.path for seen in server.seen] == ["/v1/transit/decrypt/k", "/v1/elsewhere"]
        assert refusal(vault_at(server.url, vault.Options(follow=False))) == "vault answers HTTP 307"
        server.answer = Reply(308, b"", {"Location": "/v1/elsewhere"})
        assert refusal(vault_at(server.url)) == "vault answers HTTP 308"
    assert len(server.seen) == 4


@pytest.mark.parametrize(
    "location",
    [
        "http://vault.example:8200/v1/x",
        "",
        "ftp://127.0.0.1/",
        "https://[",
        "https://",
        f"https://u:{CANARY}@v/",
        "unix:///x",
    ],
)
def test_a_redirect_never_takes_the_token_to_where_it_is_shown(location: str) -> None:
    """From an agent on the loopback."""
    with Receiver(Reply(307, b"", {"Location": location} if location else {})) as server:
        told = refusal(vault_at(server.url))
    assert told == (
        "vault redirects (HTTP 307) to no https:// address, where no token is sent; "
        "name the active node in SB_KMS_VAULT_ADDR"
    )
    assert len(server.seen) == 1


def test_a_redirect_from_tls_to_none_is_not_followed(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with Receiver(GOOD) as plain, Receiver(tls=authority.server()) as server:
        server.answer = Reply(307, b"", {"Location": f"{plain.url}/v1/x"})
        with pytest.raises(UnwrapFailed, match="where no token is sent"):
            unwrap(vault_at(server.url), pem=authority.file.read_text())
    assert plain.seen == []


# ---------------------------------------------------------------------------------------------------- its addresses


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.7.6", "localhost", "[::1]"])
def test_an_agent_on_the_loopback_needs_no_tls(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    assert problems(monkeypatch, SB_KMS_VAULT_ADDR=f"http://{host}:8200") == []


@pytest.mark.parametrize("host", ["vault:8200", "10.0.0.1", "localhost.example", "[::2]"])
def test_nothing_else_is_asked_without_tls(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    (told,) = problems(monkeypatch, SB_KMS_VAULT_ADDR=f"http://{host}")
    assert told.startswith("SB_KMS_VAULT_ADDR: plain http:// ")
    assert "http://127.0.0.1:8200" in told


def test_an_agents_variable_comes_before_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver(GOOD) as agent:
        settings = configured(monkeypatch, **BACKEND, VAULT_AGENT_ADDR=agent.url)
        assert list(settings.key_problems(dev=False)) == []
        assert opened(settings) == KEY
    assert len(agent.seen) == 1
    assert problems(monkeypatch, VAULT_AGENT_ADDR="agent")[0].startswith("VAULT_AGENT_ADDR: not a URL")


@contextmanager
def on_a_socket(path: Path, seen: list[str]) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append(f"{self.headers['Host']}{self.path}")
            self.send_response_only(200)
            self.send_header("Content-Length", str(len(GOOD.body)))
            self.end_headers()
            self.wfile.write(GOOD.body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Stay silent."""

    with socketserver.UnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.05], daemon=True)
        thread.start()
        yield
        server.shutdown()
        thread.join()


def test_an_agents_socket_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []
    settings = configured(monkeypatch, **{**BACKEND, "SB_KMS_VAULT_ADDR": f"unix://{tmp_path}/agent.sock"})
    assert list(settings.key_problems(dev=False)) == []
    with on_a_socket(tmp_path / "agent.sock", seen):
        assert opened(settings) == KEY
    assert seen == ["localhost/v1/transit/decrypt/k"]
    with pytest.raises(UnwrapFailed, match=r"vault cannot be reached \(connect\)"):
        opened(settings)
    assert problems(monkeypatch, SB_KMS_VAULT_ADDR="unix://agent.sock") == [
        "SB_KMS_VAULT_ADDR: not a socket; accepted: unix:// and an absolute path"
    ]


# --------------------------------------------------------------------------------------------------------- its TLS


def test_authorities_come_from_a_file_or_a_text_or_a_directory_in_this_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("own", "other", "directory")]
    for folder in folders:
        (folder / "below").mkdir(parents=True)
    authority, other = Authority(folders[0]), Authority(folders[1])
    for number, file in enumerate((authority.file, other.file)):
        (folders[2] / "below" / f"{number}.pem").write_text(file.read_text())
    right, wrong = authority.file.read_text(), other.file.read_text()
    with Receiver(GOOD, tls=authority.server()) as server:
        monkeypatch.setenv("SB_KMS_VAULT_ADDR", server.url)
        base = {name: value for name, value in BACKEND.items() if name != "SB_KMS_VAULT_ADDR"}
        for variables in (
            {"VAULT_CAPATH": str(folders[2])},
            {"VAULT_CACERT_BYTES": right, "VAULT_CAPATH": str(folders[1])},
            {"VAULT_CACERT": str(authority.file), "VAULT_CACERT_BYTES": wrong, "VAULT_CAPATH": str(folders[1])},
        ):
            settings = configured(monkeypatch, **base, **variables)
            assert list(settings.key_problems(dev=False)) == []
            assert opened(settings) == KEY
        monkeypatch.delenv("VAULT_CACERT")
        with pytest.raises(UnwrapFailed, match="tls"):
            opened(KmsSettings.read())


def test_an_authority_below_another_one_and_the_certificate_itself_are_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in Go: whoever is named is trusted, whoever else is above."""
    below = trustme.CA().create_child_ca()
    certificate = below.issue_cert("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    with Receiver(GOOD, tls=context) as server:
        for named in (below.cert_pem, certificate.cert_chain_pems[0]):
            variables = {**BACKEND, "SB_KMS_VAULT_ADDR": server.url, "VAULT_CACERT_BYTES": named.bytes().decode()}
            assert opened(configured(monkeypatch, **variables)) == KEY


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"VAULT_CACERT_BYTES": CANARY}, "VAULT_CACERT_BYTES: holds no certificate; accepted: PEM"),
        ({"VAULT_CAPATH": "/nowhere"}, "VAULT_CAPATH: cannot be read; accepted: a directory of PEM files"),
        ({"VAULT_CAPATH": "docs"}, "VAULT_CAPATH: holds no certificate; accepted: PEM"),
        ({"VAULT_CLIENT_CERT": "/nowhere"}, "VAULT_CLIENT_CERT: set together with VAULT_CLIENT_KEY only"),
        (
            {"VAULT_CLIENT_CERT": "/nowhere", "VAULT_CLIENT_KEY": "/nowhere"},
            (
                "VAULT_CLIENT_CERT: does not go with VAULT_CLIENT_KEY; accepted: readable PEM files of a "
                "certificate and of its key, which has no password"
            ),
        ),
        (
            {"VAULT_SKIP_VERIFY": "1"},
            "VAULT_SKIP_VERIFY: not supported; name Vault's authority in SB_KMS_VAULT_CACERT",
        ),
        ({"VAULT_SKIP_VERIFY": CANARY}, "VAULT_SKIP_VERIFY: not a boolean; accepted: true, false, 1, 0, t, f"),
        ({"VAULT_SRV_LOOKUP": "true"}, "VAULT_SRV_LOOKUP: not supported; give the port in SB_KMS_VAULT_ADDR"),
        ({"VAULT_MAX_RETRIES": "-1"}, "VAULT_MAX_RETRIES: not a number of retries; accepted: 0 or more"),
        ({"VAULT_MAX_RETRIES": CANARY}, "VAULT_MAX_RETRIES: not an integer; accepted: decimal digits such as 10"),
        (
            {"VAULT_CLIENT_TIMEOUT": CANARY},
            "VAULT_CLIENT_TIMEOUT: not a time; accepted: seconds such as 30, or a Go duration such as 30s",
        ),
        (
            {"VAULT_HEADERS": '{"X-Vault-Token": "' + CANARY + '"}'},
            'VAULT_HEADERS: not headers; accepted: a JSON object of texts such as {"X-Tenant": "eu"}, none of X-Vault-',
        ),
        (
            {"VAULT_HEADERS": '{"a": 1}'},
            'VAULT_HEADERS: not headers; accepted: a JSON object of texts such as {"X-Tenant": "eu"}, none of X-Vault-',
        ),
        (
            {"VAULT_TLS_SERVER_NAME": "a" * 300},
            "VAULT_TLS_SERVER_NAME: not a server's name; accepted: the name in Vault's certificate",
        ),
    ],
)
def test_a_variable_that_cannot_be_used_is_one_line_at_boot(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    assert problems(monkeypatch, **variables) == [told]
    assert CANARY not in told


def test_variables_of_vault_disturb_nobody_who_does_not_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nonsense = {
        "VAULT_MAX_RETRIES": "x",
        "VAULT_SKIP_VERIFY": "x",
        "VAULT_HEADERS": "x",
        "VAULT_CLIENT_TIMEOUT": "x",
        "VAULT_RATE_LIMIT": "x",
    }
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    aws = {"SB_KMS_BACKEND": "aws-kms", "SB_KMS_AWS_REGION": "eu-central-1", "SB_KMS_AWS_KEY_ID": "alias/k"}
    settings = configured(monkeypatch, **nonsense, **aws)
    assert list(settings.key_problems(dev=False)) == []
    assert settings.warnings == ()


def test_what_is_not_verified_anyway_may_skip_it_and_a_port_needs_no_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = {"SB_KMS_VAULT_ADDR": "http://127.0.0.1:8200", "VAULT_SKIP_VERIFY": "true", "VAULT_SRV_LOOKUP": "true"}
    assert problems(monkeypatch, **agent) == []


def test_what_is_accepted_and_not_heeded_has_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = configured(
        monkeypatch,
        **BACKEND,
        VAULT_HTTP_PROXY=f"http://u:{CANARY}@proxy",
        VAULT_RATE_LIMIT="5:10",
        VAULT_WRAP_TTL="60",
    )
    assert [warning.partition(":")[0] for warning in settings.warnings] == [
        "VAULT_HTTP_PROXY",
        "VAULT_RATE_LIMIT",
        "VAULT_WRAP_TTL",
    ]
    assert CANARY not in str(settings.warnings)


def test_a_vault_that_wants_a_certificate_is_shown_ours_and_may_have_another_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("vault.internal").configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    own = ca.issue_cert("worker")
    own.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "worker.pem"))
    files = {"VAULT_CACERT": str(tmp_path / "ca.pem"), "VAULT_TLS_SERVER_NAME": "vault.internal"}
    pair = {"VAULT_CLIENT_CERT": str(tmp_path / "worker.pem"), "VAULT_CLIENT_KEY": str(tmp_path / "worker.pem")}
    with Receiver(GOOD, tls=context) as server:
        base = {**BACKEND, "SB_KMS_VAULT_ADDR": server.url, **files}
        with pytest.raises(UnwrapFailed, match=r"vault cannot be reached \((tls|connect|protocol)\)"):
            opened(configured(monkeypatch, **base))
        settings = configured(monkeypatch, **base, **pair)
        assert list(settings.key_problems(dev=False)) == []
        assert opened(settings) == KEY
        monkeypatch.delenv("VAULT_TLS_SERVER_NAME")
        with pytest.raises(UnwrapFailed, match=r"vault cannot be reached \(tls\)"):
            opened(KmsSettings.read())
    assert len(server.seen) == 1


# ------------------------------------------------------------------------------------------- headers, time, the token


def test_more_headers_retries_and_a_time_limit_are_what_the_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver(answer(500)) as server:
        settings = configured(
            monkeypatch,
            **{**BACKEND, "SB_KMS_VAULT_ADDR": server.url},
            VAULT_HEADERS='{"X-Tenant": "' + CANARY + '"}',
            VAULT_MAX_RETRIES="4",
        )
        assert list(settings.key_problems(dev=False)) == []
        with pytest.raises(UnwrapFailed):
            opened(settings)
    assert [seen.headers["x-tenant"] for seen in server.seen] == [CANARY] * 5
    assert CANARY not in repr(settings)


@pytest.mark.parametrize(("text", "seconds"), [("7", 7.0), ("1m30s", 90.0), ("500ms", 0.5), ("0", None), ("-1s", None)])
def test_a_time_limit_is_seconds_or_a_duration(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    settings = configured(monkeypatch, **BACKEND, VAULT_CLIENT_TIMEOUT=text)
    assert list(settings.key_problems(dev=False)) == []
    assert settings.vault_keys._options.seconds == seconds


def test_a_token_in_a_file_is_the_one_that_is_there_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As an agent that logs in writes it."""
    file = tmp_path / "token"
    file.write_text("s.first\n")

    def rotate(seen: Seen) -> Reply:
        del seen
        file.write_text("s.second\n")
        return GOOD

    variables = {name: value for name, value in BACKEND.items() if name != "SB_KMS_VAULT_TOKEN"}
    with Receiver(rotate) as server:
        settings = configured(
            monkeypatch, **{**variables, "SB_KMS_VAULT_ADDR": server.url}, SB_KMS_VAULT_TOKEN_FILE=str(file)
        )
        opened(settings)
        opened(settings)
    assert [seen.headers["x-vault-token"] for seen in server.seen] == ["s.first", "s.second"]


def test_a_token_that_is_refused_and_was_replaced_is_tried_once_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("s.first")

    def judge(seen: Seen) -> Reply:
        if seen.headers["x-vault-token"] == "s.second":
            return GOOD
        file.write_text("s.second")
        return answer(403)

    variables = {name: value for name, value in BACKEND.items() if name != "SB_KMS_VAULT_TOKEN"}
    with Receiver(judge) as server:
        monkeypatch.setenv("SB_KMS_VAULT_TOKEN_FILE", str(file))
        assert opened(configured(monkeypatch, **{**variables, "SB_KMS_VAULT_ADDR": server.url})) == KEY
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (429, "vault login: vault limits the rate of requests (HTTP 429), for longer than a run can wait"),
        (503, "vault login: vault is sealed or under maintenance (HTTP 503)"),
        (403, "vault login: refused (HTTP 403); check the role and its bound accounts"),
    ],
)
def test_a_login_that_fails_says_whether_the_role_is_to_blame(status: int, told: str, tmp_path: Path) -> None:
    (tmp_path / "jwt").write_text("pod-jwt")
    with Receiver(answer(status, {"Retry-After": "3600"})) as server:
        login = vault.Kubernetes("worker", "k8s", str(tmp_path / "jwt"))
        keys = vault.VaultKeys(vault.Place(server.url, "transit", "k", ""), login=login)
        assert refusal(keys) == told
