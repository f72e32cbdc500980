"""What AWS's own Go client does by itself: tries again, corrects its clock, keeps credentials that still work."""

from __future__ import annotations

from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from tests.support.http_server import Receiver, Reply, Rude, Seen, hang_up
from tests.support.key_services import (
    CANARY,
    KEY,
    KEY_TEXT,
    SECRET,
    WHEN,
    InTurn,
    answer,
    kms,
    refusal,
    unwrap,
)

GOOD = answer(200, Plaintext=KEY_TEXT)
KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET}
STS_ERROR = "<ErrorResponse><Error><Code>{}</Code><Message>" + CANARY + "</Message></Error></ErrorResponse>"


@pytest.mark.parametrize(
    "reply",
    [
        answer(400, __type="ThrottlingException", message="Rate exceeded"),
        answer(400, __type="com.amazonaws.kms#LimitExceededException"),
        answer(400, {"X-Amzn-ErrorType": "ThrottlingException:http://internal.amazon.com/"}),
        answer(400, code="TooManyRequestsException"),
        answer(429),
        answer(400, __type="RequestTimeout"),
        answer(500, __type="KMSInternalException"),
        Reply(502, b"<html>"),
        answer(503),
        answer(504),
    ],
    ids=lambda reply: f"{reply.status}-{reply.body[:24]}",
)
def test_what_passes_is_waited_for_within_the_run(reply: Reply) -> None:
    with Receiver(InTurn(reply, reply, GOOD)) as server:
        assert unwrap(kms(server.url), b"blob") == [KEY]
    assert len(server.seen) == 3


def test_throttling_is_waited_for_more_often_than_failures_are_retried() -> None:
    with Receiver(InTurn(*[answer(400, __type="ThrottlingException")] * 5, GOOD)) as server:
        assert unwrap(kms(server.url), b"blob") == [KEY]


@pytest.mark.parametrize(("attempts", "sent"), [("1", 1), ("2", 2), ("5", 5), ("0", 3), ("", 3)])
def test_attempts_are_as_many_as_the_variable_says(attempts: str, sent: int) -> None:
    with Receiver(answer(500)) as server:
        refusal(kms(server.url, {**KEYS, "AWS_MAX_ATTEMPTS": attempts}), b"blob")
    assert len(server.seen) == sent


@pytest.mark.parametrize("reply", [answer(400, __type="DisabledException"), answer(403), answer(501)])
def test_what_does_not_pass_is_asked_once(reply: Reply) -> None:
    with Receiver(reply) as server:
        refusal(kms(server.url), b"blob")
    assert len(server.seen) == 1


def test_a_connection_that_is_cut_is_made_again() -> None:
    with Rude(hang_up) as server:
        # An end that comes before all of the request was read is a reset, which is another word.
        assert refusal(kms(server.url), b"blob") in {
            f"aws kms cannot be reached ({word})" for word in ("protocol", "connect")
        }
        assert server.connections == 3


def test_an_error_in_a_header_is_told_by_its_name() -> None:
    with Receiver(answer(400, {"X-Amzn-ErrorType": "AccessDeniedException"})) as server:
        assert refusal(kms(server.url), b"blob") == "aws kms: AccessDeniedException"


# -------------------------------------------------------------------------------------------------------- its clock


@pytest.mark.parametrize("minutes", [-300, -6, 6, 300])
def test_a_clock_that_is_wrong_is_corrected_by_the_answer(minutes: int) -> None:
    """AWS takes signatures of the last and the next 5 minutes."""
    aws_time = WHEN + timedelta(minutes=minutes)

    def judge(seen: Seen) -> Reply:
        if seen.headers["x-amz-date"] == f"{aws_time:%Y%m%dT%H%M%SZ}":
            return GOOD
        return answer(400, {"Date": format_datetime(aws_time, usegmt=True)}, __type="InvalidSignatureException")

    with Receiver(judge) as server:
        keys = kms(server.url)
        assert unwrap(keys, b"blob") == [KEY]
        assert unwrap(keys, b"blob") == [KEY]
    assert len(server.seen) == 3  # what it has learned it keeps


@pytest.mark.parametrize("date", ["", "yesterday", format_datetime(WHEN + timedelta(minutes=3), usegmt=True)])
def test_a_signature_that_is_wrong_by_itself_is_not_the_clocks_fault(date: str) -> None:
    headers = {"Date": date} if date else {}
    with Receiver(answer(400, headers, __type="InvalidSignatureException")) as server:
        assert refusal(kms(server.url), b"blob") == "aws kms: InvalidSignatureException"
    assert len(server.seen) == 1


# ---------------------------------------------------------------------------------------------- STS and credentials


def identity(url: str, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "jwt").write_text("pod-jwt")
    return {
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "jwt"),
        "AWS_ROLE_ARN": "arn:aws:iam::1:role/worker",
        "AWS_ENDPOINT_URL_STS": f"{url}/sts",
    }


@pytest.mark.parametrize("code", ["IDPCommunicationError", "InvalidIdentityToken"])
def test_an_issuer_that_cannot_be_asked_just_now_is_asked_again(code: str, tmp_path: Path) -> None:
    with Receiver(Reply(400, STS_ERROR.format(code).encode())) as server:
        told = refusal(kms(server.url, {**identity(server.url, tmp_path), "AWS_MAX_ATTEMPTS": "2"}), b"blob")
    assert len(server.seen) == 2
    assert told == f"aws web identity: refused ({code}); check the role's ARN and its trust policy"


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [(400, STS_ERROR.format("Throttling"), "aws web identity: Throttling"), (503, "", "aws web identity: HTTP 503")],
)
def test_an_outage_of_sts_is_not_blamed_on_the_role(status: int, body: str, told: str, tmp_path: Path) -> None:
    with Receiver(Reply(status, body.encode(), {"Retry-After": "3600"})) as server:
        assert refusal(kms(server.url, identity(server.url, tmp_path)), b"blob") == told


@pytest.mark.parametrize(("code", "told"), [("ExpiredTokenException", "ExpiredTokenException"), (CANARY, "HTTP 400")])
def test_why_a_role_is_refused_is_told_without_its_words(code: str, told: str, tmp_path: Path) -> None:
    with Receiver(Reply(400, STS_ERROR.format(code).encode())) as server:
        refused = refusal(kms(server.url, identity(server.url, tmp_path)), b"blob")
    assert refused == f"aws web identity: refused ({told}); check the role's ARN and its trust policy"
    assert len(server.seen) == 1


def test_credentials_that_expire_soon_are_used_while_there_are_no_others() -> None:
    away = [False]
    refused: list[str] = []

    def serve(seen: Seen) -> Reply:
        if seen.path == "/agent":
            expires = f"{WHEN + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
            fresh = answer(200, AccessKeyId="ASIA1", SecretAccessKey=SECRET, Token="t", Expiration=expires)
            return Reply(500) if away[0] else fresh
        return answer(400, __type="ExpiredTokenException") if refused else GOOD

    clock = [WHEN]
    with Receiver(serve) as server:
        keys = kms(server.url, {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{server.url}/agent"}, lambda: clock[0])
        unwrap(keys, b"blob")
        away[0], clock[0] = True, WHEN + timedelta(minutes=58)
        assert unwrap(keys, b"blob") == [KEY]
        refused.append("now")
        assert refusal(keys, b"blob") == "aws container credentials: refused (HTTP 500)"
