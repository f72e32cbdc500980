"""Vault and AWS against local servers that check what they are asked."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import socket
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from app.core import egress
from app.core.errors import AddressBlocked, UnwrapFailed
from app.kms import aws, vault
from app.kms.envelope import Envelope, KeyManager, open_token
from app.kms.transport import CREDENTIALS, MOST_BODY, KeyServiceTransport
from tests.support import http_server
from tests.support.http_server import Receiver, Reply, Rude, Seen
from tests.support.key_services import (
    CANARY,
    KEY,
    KEY_TEXT,
    SEALED,
    SECRET,
    WHEN,
    answer,
    configured,
    kms,
    refusal,
    unwrap,
    vault_at,
)
from tests.support.tls import Authority
from tests.support.waiting import eventually

# ---------------------------------------------------------------------------------------------------------- Vault


def test_vault_is_asked_over_tls_with_token_and_namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with Receiver(answer(200, data={"plaintext": KEY_TEXT}), tls=authority.server()) as server:
        settings = configured(
            monkeypatch,
            SB_KMS_BACKEND="vault-transit",
            SB_KMS_VAULT_ADDR=server.url + "/",
            SB_KMS_VAULT_TOKEN=CANARY,
            SB_KMS_VAULT_KEY="sb-wrap",
            SB_KMS_VAULT_MOUNT="team/transit",
            SB_KMS_VAULT_NAMESPACE="eu/prod",
            SB_KMS_VAULT_CACERT=str(authority.file),
        )
        assert list(settings.key_problems(dev=False)) == []
        (key,) = unwrap(settings.keys, pem=authority.file.read_text())
    (seen,) = server.seen
    assert key == KEY
    assert (seen.method, seen.path, seen.json) == (
        "POST",
        "/v1/team/transit/decrypt/sb-wrap",
        {"ciphertext": SEALED.decode()},
    )
    assert (seen.headers["x-vault-token"], seen.headers["x-vault-namespace"]) == (CANARY, "eu/prod")
    assert CANARY not in repr(settings)


def test_vault_of_another_authority_is_not_asked(tmp_path: Path) -> None:
    with Receiver(answer(200), tls=Authority(tmp_path).server()) as server:
        assert refusal(vault_at(server.url)) == "vault cannot be reached (tls)"
    assert server.seen == []


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (answer(400, errors=[CANARY]), "vault refuses the data key (HTTP 400): wrapped by another key, or tampered"),
        (
            answer(403, errors=[CANARY]),
            "vault refuses the credentials or their policy (HTTP 403); it must allow update on decrypt",
        ),
        (answer(404, errors=[]), "vault knows no such mount or key (HTTP 404)"),
        (answer(503, errors=[]), "vault is sealed or under maintenance (HTTP 503)"),
        (answer(500), "vault answers HTTP 500"),
        (Reply(200, b"<html>"), "vault: the answer has no plaintext"),
        (answer(200, data=[CANARY]), "vault: the answer has no plaintext"),
        (answer(200, data={"plaintext": "?" + CANARY}), "vault: the answer has no plaintext"),
        (answer(200, data={"plaintext": ""}), "vault: the answer has no plaintext"),
    ],
)
def test_what_vault_answers_is_told_without_its_words(reply: Reply, reason: str) -> None:
    with Receiver(reply) as server:
        assert refusal(vault_at(server.url)) == reason
    assert len(server.seen) == (3 if reply.status >= 500 else 1)


@pytest.mark.parametrize("wrapped", [b"", b"vault:", b"vault:v1", b"local:v1:AAAA", b"vault:v1:\xff\xff"])
def test_what_is_not_vaults_text_is_not_sent(wrapped: bytes) -> None:
    keys = vault_at("http://127.0.0.1:1")
    assert refusal(keys, wrapped) == "the wrapped data key is not in Vault's form"


def test_a_vault_that_hangs_is_cut_off() -> None:
    with Rude(http_server.body_drip) as server:
        keys = vault_at(server.url)
        assert refusal(keys, seconds=0.3) == "vault cannot be reached (timeout)"


def test_a_service_that_hangs_is_waited_for_once_a_run() -> None:
    async def run(keys: KeyManager) -> list[str]:
        transport, told = KeyServiceTransport(deadline=1), []
        for _ in range(20):
            with pytest.raises(UnwrapFailed) as refused:
                await keys.unwrap(SEALED, "", transport)
            told.append(str(refused.value))
        await transport.close()
        return told

    with Rude(http_server.silence) as server:
        keys = vault_at(server.url)
        first, *others = asyncio.run(run(keys))
        eventually(lambda: server.connections == 1)
    assert first == "vault cannot be reached (timeout)"
    assert set(others) == {"vault cannot be reached, as found before in this run"}


def test_an_answer_without_end_is_cut() -> None:
    with Rude(http_server.endless) as server:
        keys = vault_at(server.url)
        assert refusal(keys) == "vault: the answer has no plaintext"
    assert MOST_BODY < 1_000_000


class KubernetesVault:
    """A Vault that lets a pod in, and forgets the login when told."""

    def __init__(self, lifetime: int = 3600) -> None:
        self.logins = 0
        self.revoked: set[str] = set()
        self.lifetime = lifetime

    def __call__(self, seen: Seen) -> Reply:
        if seen.path == "/v1/auth/k8s/login":
            if seen.json != {"role": "worker", "jwt": "pod-jwt"}:
                return answer(400, errors=["no"])
            self.logins += 1
            return answer(200, auth={"client_token": f"s.{self.logins}", "lease_duration": self.lifetime})
        if seen.headers.get("x-vault-token", "") in self.revoked | {""}:
            return answer(403, errors=["permission denied"])
        return answer(200, data={"plaintext": KEY_TEXT})


def pod(url: str, tmp_path: Path, role: str = "worker") -> vault.VaultKeys:
    (tmp_path / "jwt").write_text("pod-jwt\n")
    login = vault.Kubernetes(role, "k8s", str(tmp_path / "jwt"))
    return vault.VaultKeys(vault.Place(url, "transit", "k", ""), login=login)


def test_a_pod_logs_in_once_for_many_and_again_when_its_login_is_revoked(tmp_path: Path) -> None:
    there = KubernetesVault()
    with Receiver(there) as server:
        keys = pod(server.url, tmp_path)
        assert unwrap(keys, times=5) == [bytearray(KEY)] * 5
        assert there.logins == 1
        there.revoked.add("s.1")
        assert unwrap(keys, times=5) == [bytearray(KEY)] * 5
        assert there.logins == 2


def test_a_login_that_is_over_is_made_again(tmp_path: Path) -> None:
    there = KubernetesVault(lifetime=0)
    with Receiver(there) as server:
        keys = pod(server.url, tmp_path)
        unwrap(keys)
        unwrap(keys)
    assert there.logins == 2


def test_a_login_that_fails_says_so(tmp_path: Path) -> None:
    with Receiver(KubernetesVault()) as server:
        refused = refusal(pod(server.url, tmp_path, role="stranger"))
        assert refused == "vault login: refused (HTTP 400); check the role and its bound accounts"
    with Receiver(answer(200, auth={})) as server:
        assert refusal(pod(server.url, tmp_path)) == "vault login: the answer has no token"
    keys = pod("http://127.0.0.1:1", tmp_path)
    (tmp_path / "jwt").unlink()
    assert refusal(keys) == "vault login: the service account's token cannot be read"


# ------------------------------------------------------------------------------------------------------------ AWS


def signature(seen: Seen, secret: str, region: str = "eu-central-1", service: str = "kms") -> str:
    """Compute the signature of a request anew, from what arrived."""
    match = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/([^/]+)/aws4_request, "
        r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})",
        seen.headers["authorization"],
    )
    assert match, seen.headers["authorization"]
    day, names = match[2], match[5]
    assert (match[3], match[4]) == (region, service)
    assert seen.headers["x-amz-date"].startswith(day)
    lines = "".join(f"{name}:{seen.headers[name]}\n" for name in names.split(";"))
    canonical = f"{seen.method}\n{seen.path}\n\n{lines}\n{names}\n{hashlib.sha256(seen.body).hexdigest()}"
    scope = f"{day}/{region}/{service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{seen.headers['x-amz-date']}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = b"AWS4" + secret.encode()
    for part in (*scope.split("/"), text):
        key = hmac.digest(key, part.encode(), "sha256")
    return "right" if key.hex() == match[6] else "wrong"


def test_kms_is_asked_with_a_signature_that_holds() -> None:
    with Receiver(answer(200, Plaintext=KEY_TEXT, KeyId="arn")) as server:
        assert unwrap(kms(server.url), b"\x00blob") == [bytearray(KEY)]
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", "/")
    assert seen.json == {"CiphertextBlob": base64.b64encode(b"\x00blob").decode(), "KeyId": "alias/sb"}
    assert seen.headers["x-amz-target"] == "TrentService.Decrypt"
    assert seen.headers["content-type"] == "application/x-amz-json-1.1"
    assert seen.headers["x-amz-date"] == "20261123T090000Z"
    assert {"content-type", "host", "x-amz-date", "x-amz-target"} <= set(
        seen.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    )
    assert signature(seen, SECRET) == "right"
    assert signature(seen, "another secret") == "wrong"


def test_the_regions_own_endpoint_is_asked_unless_told() -> None:
    assert aws.AwsKeys(aws.Place("eu-central-1", "k", ""))._url == "https://kms.eu-central-1.amazonaws.com/"
    assert aws.AwsKeys(aws.Place("cn-north-1", "k", ""))._url == "https://kms.cn-north-1.amazonaws.com.cn/"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (answer(400, __type="AccessDeniedException", message=CANARY), "aws kms: AccessDeniedException"),
        (answer(400, __type="com.amazonaws.kms#InvalidCiphertextException"), "aws kms: InvalidCiphertextException"),
        (answer(400, __type=CANARY), "aws kms: HTTP 400"),
        (answer(400, __type=["x"]), "aws kms: HTTP 400"),
        (Reply(503, b"<html>"), "aws kms: HTTP 503"),
        (answer(200, Plaintext=""), "aws kms: the answer has no plaintext"),
        (answer(200, Plaintext="???"), "aws kms: the answer has no plaintext"),
        (answer(200, Plaintext=5), "aws kms: the answer has no plaintext"),
    ],
)
def test_what_kms_answers_is_told_without_its_words(reply: Reply, reason: str) -> None:
    with Receiver(reply) as server:
        assert refusal(kms(server.url), b"blob") == reason
    assert len(server.seen) == (3 if reply.status >= 500 else 1)


def test_nothing_is_not_sent() -> None:
    assert refusal(kms("http://127.0.0.1:1"), b"") == "the wrapped data key is empty"


class Cloud:
    """STS, a container's agent and an instance's metadata, which give credentials, and a KMS that wants them."""

    def __init__(self) -> None:
        self.given = 0
        self.expires = WHEN + timedelta(hours=1)
        self.stale: set[str] = set()

    def __call__(self, seen: Seen) -> Reply:  # noqa: PLR0911
        if seen.headers.get("x-amz-target"):
            name = re.search(r"Credential=([^/]+)/", seen.headers["authorization"])
            if name is None or name[1] in self.stale:
                return answer(400, __type="ExpiredTokenException")
            assert seen.headers["x-amz-security-token"] == "session"
            right = signature(seen, "temporary-secret") == "right"
            return answer(200, Plaintext=KEY_TEXT) if right else answer(400, __type="InvalidSignatureException")
        if seen.path == "/latest/api/token":
            wanted = (seen.method, seen.headers["x-aws-ec2-metadata-token-ttl-seconds"])
            return Reply(200, b"imds") if wanted == ("PUT", "300") else Reply(400)
        if seen.path.startswith("/latest/"):
            if seen.headers.get("x-aws-ec2-metadata-token") != "imds":
                return Reply(401)
            if seen.path.endswith("/security-credentials/"):
                return Reply(200, b"worker-role\n")
            assert seen.path.endswith("/security-credentials/worker-role")
            return self._credentials()
        if seen.path == "/agent":
            return self._credentials() if seen.headers.get("authorization") == "agent-token" else Reply(403)
        form = {name: values[0] for name, values in parse_qs(seen.body.decode()).items()}
        if form != {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "RoleArn": "arn:aws:iam::1:role/worker",
            "RoleSessionName": "secrets-bridge-worker",
            "WebIdentityToken": "pod-jwt",
        }:
            return Reply(403)
        self.given += 1
        return Reply(
            200,
            f"""<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
              <AssumeRoleWithWebIdentityResult><Credentials>
                <AccessKeyId>ASIA{self.given}</AccessKeyId>
                <SecretAccessKey>temporary-secret</SecretAccessKey>
                <SessionToken>session</SessionToken>
                <Expiration>{self.expires:%Y-%m-%dT%H:%M:%SZ}</Expiration>
              </Credentials></AssumeRoleWithWebIdentityResult>
            </AssumeRoleWithWebIdentityResponse>""".encode(),
        )

    def _credentials(self) -> Reply:
        self.given += 1
        return answer(
            200,
            AccessKeyId=f"ASIA{self.given}",
            SecretAccessKey="temporary-secret",
            Token="session",
            Expiration=f"{self.expires:%Y-%m-%dT%H:%M:%SZ}",
        )


def sources(url: str, tmp_path: Path) -> dict[str, dict[str, str]]:
    (tmp_path / "jwt").write_text("pod-jwt\n")
    (tmp_path / "agent").write_text("agent-token\n")
    return {
        "web identity": {
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "jwt"),
            "AWS_ROLE_ARN": "arn:aws:iam::1:role/worker",
            "AWS_ENDPOINT_URL_STS": url,
        },
        "container": {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/agent",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "agent"),
        },
        "instance": {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url},
    }


@pytest.mark.parametrize("source", ["web identity", "container", "instance"])
def test_temporary_credentials_are_kept_until_shortly_before_they_expire(source: str, tmp_path: Path) -> None:
    cloud, clock = Cloud(), [WHEN]
    with Receiver(cloud) as server:
        keys = kms(server.url, sources(server.url, tmp_path)[source], lambda: clock[0])
        assert unwrap(keys, b"blob", times=4) == [bytearray(KEY)] * 4
        unwrap(keys, b"blob")
        assert cloud.given == 1
        clock[0] = WHEN + timedelta(minutes=56)
        cloud.expires = clock[0] + timedelta(hours=1)
        unwrap(keys, b"blob")
        assert cloud.given == 2
        cloud.stale = {"ASIA2"}
        unwrap(keys, b"blob")
        assert cloud.given == 3


def test_environment_comes_first_and_must_be_whole(tmp_path: Path) -> None:
    with Receiver(Cloud()) as server:
        half = {**sources(server.url, tmp_path)["container"], "AWS_ACCESS_KEY_ID": "AKID"}
        told = "aws credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must both be set"
        assert refusal(kms(server.url, half), b"blob") == told
    assert server.seen == []


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        (
            {"AWS_EC2_METADATA_DISABLED": "true"},
            "aws credentials: none found; looked at: environment, web identity, profile, container, instance metadata",
        ),
        (
            {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1"},
            "aws credentials: none found; looked at: environment, web identity, profile, container, instance metadata",
        ),
        (
            {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://example.com/x"},
            (
                "aws container credentials: AWS_CONTAINER_CREDENTIALS_FULL_URI must be https://, "
                "or the container's own agent"
            ),
        ),
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere"}, "aws web identity: AWS_ROLE_ARN is not set"),
        (
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere", "AWS_ROLE_ARN": "arn"},
            "aws web identity: its token file cannot be read",
        ),
    ],
)
def test_credentials_that_are_not_there_say_what_to_look_at(environ: dict[str, str], reason: str) -> None:
    assert refusal(kms("http://127.0.0.1:1", environ), b"blob") == reason


def test_sources_that_refuse_say_so(tmp_path: Path) -> None:
    with Receiver(Reply(403, CANARY.encode())) as server:
        told = [refusal(kms(server.url, source), b"blob") for source in sources(server.url, tmp_path).values()]
    assert told == [
        "aws web identity: refused (HTTP 403); check the role's ARN and its trust policy",
        "aws container credentials: refused (HTTP 403)",
        "aws instance metadata: no session (HTTP 403); is its hop limit too low for a container?",
    ]
    with Receiver(answer(200, AccessKeyId="x")) as server:
        told = [refusal(kms(server.url, source), b"blob") for source in sources(server.url, tmp_path).values()]
    assert told[0] == "aws web identity: the answer has no credentials"
    assert told[1] == "aws container credentials: the answer has no credentials"


# ------------------------------------------------------------------------------- what no answer and no address may do


SEALED_TOKEN = Envelope(bytes(16), bytes(12), b"x", "x")


def test_opening_a_token_has_one_end_whatever_the_key_manager_waits_for() -> None:
    class Waiting:
        async def unwrap(self, wrapped: bytes, key_id: str, transport: KeyServiceTransport) -> bytearray:
            del wrapped, key_id, transport
            await asyncio.Event().wait()
            raise AssertionError

    with pytest.raises(UnwrapFailed, match=r"no data key within 0\.3s"):
        asyncio.run(open_token(SEALED_TOKEN, Waiting(), KeyServiceTransport(deadline=0.1)))


def test_an_error_that_nobody_thought_of_is_a_token_that_does_not_open() -> None:
    class Odd:
        async def unwrap(self, wrapped: bytes, key_id: str, transport: KeyServiceTransport) -> bytearray:
            del wrapped, key_id, transport
            raise OverflowError(CANARY)

    with pytest.raises(UnwrapFailed, match=r"^unexpected OverflowError$") as refused:
        asyncio.run(open_token(SEALED_TOKEN, Odd(), KeyServiceTransport()))
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "body", [b"[" * 60_000, b'{"data":' * 8000, b'{"data":' + b"9" * 60_000, b"[" + b"{}," * 20_000]
)
def test_an_answer_that_is_no_document_has_no_plaintext(body: bytes) -> None:
    with Receiver(Reply(200, body)) as server:
        keys = vault_at(server.url)
        assert refusal(keys) == "vault: the answer has no plaintext"


def test_a_login_of_absurd_length_is_used_and_renewed_some_day(tmp_path: Path) -> None:
    (tmp_path / "jwt").write_text("pod-jwt")
    with Receiver(KubernetesVault(lifetime=10**400)) as server:
        login = vault.Kubernetes("worker", "k8s", str(tmp_path / "jwt"))
        keys = vault.VaultKeys(vault.Place(server.url, "transit", "k", ""), login=login)
        assert unwrap(keys) == [KEY]


@pytest.mark.parametrize(
    ("expires", "usable"),
    [
        ("0001-01-01T00:00:00+14:00", False),
        ("9999-12-31T23:59:59-14:00", False),
        ("0001-01-01T00:00:00Z", True),
        ("9999-12-31T23:59:59Z", True),
    ],
)
def test_credentials_that_expire_at_the_ends_of_time_are_used_or_refused(expires: str, usable: bool) -> None:
    """And are asked for again: what was kept of an absurd answer must not spoil the next attempt."""
    source = {"AccessKeyId": "AKIAX", "SecretAccessKey": SECRET, "Token": CANARY, "Expiration": expires}

    def serve(seen: Seen) -> Reply:
        return Reply(200, json.dumps(source).encode()) if seen.path == "/role" else answer(200, Plaintext=KEY_TEXT)

    with Receiver(serve) as server:
        environ = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": server.url + "/role"}
        keys = aws.AwsKeys(aws.Place("eu-central-1", "alias/x", server.url), environ)
        for _ in range(2):
            if usable:
                assert unwrap(keys) == [KEY]
            else:
                assert refusal(keys) == "aws container credentials: the answer has no credentials"


def test_a_name_that_leads_to_a_metadata_service_is_not_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged is what a name leads to. Nobody serves that address here, and nobody is asked."""
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **named: real("169.254.169.254" if host == "kms.example" else host, *more, **named),
    )
    keys = vault_at("http://kms.example")
    assert refusal(keys) == "vault cannot be reached (blocked_address)"


def test_credentials_are_asked_of_the_metadata_services_of_aws_and_of_no_other() -> None:
    for host in ("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23"):
        assert asyncio.run(egress.resolve(host, 80, besides=CREDENTIALS)) == [host]
    with pytest.raises(AddressBlocked):
        asyncio.run(egress.resolve("169.254.1.1", 80, besides=CREDENTIALS))


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "100.100.100.200", "[::ffff:169.254.169.254]"])
def test_a_key_service_at_an_address_that_is_never_dialled_is_refused_at_boot(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    settings = configured(
        monkeypatch,
        SB_KMS_BACKEND="vault-transit",
        SB_KMS_VAULT_ADDR=f"https://{host}:8200",
        SB_KMS_VAULT_TOKEN=CANARY,
        SB_KMS_VAULT_KEY="k",
    )
    assert list(settings.key_problems(dev=True)) == [
        "SB_KMS_VAULT_ADDR: an address that is never dialled, such as a metadata service's"
    ]


def test_an_authority_file_may_have_comments_in_any_language(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.file.write_bytes("\ufeff# Főtanúsítvány\n".encode() + authority.file.read_bytes() + b"# \xff\xfe\n")
    with Receiver(answer(200, data={"plaintext": KEY_TEXT}), tls=authority.server()) as server:
        settings = configured(
            monkeypatch,
            SB_KMS_BACKEND="vault-transit",
            SB_KMS_VAULT_ADDR=server.url,
            SB_KMS_VAULT_TOKEN=CANARY,
            SB_KMS_VAULT_KEY="k",
            SB_KMS_VAULT_CACERT=str(authority.file),
        )
        assert list(settings.key_problems(dev=False)) == []
        context = settings.key_context
        assert context.cert_store_stats()["x509"] == 1
