"""An instance's metadata service: its two versions, and a hop limit that lets no session through."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.support.http_server import Receiver, Reply, Seen
from tests.support.key_services import KEY, KEY_TEXT, SECRET, answer, kms, refusal, unwrap

ROLE = "/latest/meta-data/iam/security-credentials/"
NO_SESSION = "aws instance metadata: no session ({}); is its hop limit too low for a container?"


class Machine:
    """Serves a role's credentials and AWS; what asks for a session is answered by `session`."""

    def __init__(self, session: Callable[[], Reply], *, without: Reply | None = None) -> None:
        """`without` is the answer to those who have no session; None for the credentials."""
        self._session = session
        self._without = without
        self.over = threading.Event()

    def __call__(self, seen: Seen) -> Reply:
        if seen.headers.get("x-amz-target"):
            return answer(200, Plaintext=KEY_TEXT)
        if seen.method == "PUT":
            return self._session()
        if self._without and not seen.headers.get("x-aws-ec2-metadata-token"):
            return self._without
        role = Reply(200, b"worker")
        return role if seen.path == ROLE else answer(200, AccessKeyId="A", SecretAccessKey=SECRET, Token="t")


def environ(url: str, **more: str) -> dict[str, str]:
    return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url, **more}


@pytest.mark.parametrize("status", [403, 404, 405])
def test_where_there_are_no_sessions_the_first_version_answers(status: int) -> None:
    with Receiver(Machine(lambda: Reply(status))) as server:
        assert unwrap(kms(server.url, environ(server.url)), b"blob") == [KEY]


def test_a_session_that_does_not_come_back_is_done_without_where_that_is_allowed() -> None:
    over = threading.Event()

    def lost() -> Reply:
        over.wait(60)
        return Reply(500)

    with Receiver(Machine(lost)) as server:
        try:
            assert unwrap(kms(server.url, environ(server.url)), b"blob", times=3) == [KEY] * 3
            only = environ(server.url, AWS_EC2_METADATA_V1_DISABLED="true")
            assert refusal(kms(server.url, only), b"blob", seconds=1) == NO_SESSION.format("timeout")
        finally:
            over.set()


def test_a_session_that_does_not_come_back_and_is_needed_is_a_hop_limit() -> None:
    over = threading.Event()

    def lost() -> Reply:
        over.wait(60)
        return Reply(500)

    with Receiver(Machine(lost, without=Reply(401))) as server:
        try:
            assert refusal(kms(server.url, environ(server.url)), b"blob", seconds=1) == NO_SESSION.format("timeout")
        finally:
            over.set()


def test_a_service_that_says_nothing_at_all_is_told_as_a_hop_limit() -> None:
    over = threading.Event()

    def silent(seen: Seen) -> Reply:
        del seen
        over.wait(60)
        return Reply(500)

    with Receiver(silent) as server:
        try:
            assert refusal(kms(server.url, environ(server.url)), b"blob", seconds=1) == NO_SESSION.format("timeout")
        finally:
            over.set()


def test_a_service_that_fails_in_passing_is_asked_again() -> None:
    turns = [Reply(503), Reply(200, b"session")]
    with Receiver(Machine(lambda: turns.pop(0), without=Reply(401))) as server:
        assert unwrap(kms(server.url, environ(server.url)), b"blob") == [KEY]


def test_a_session_that_is_refused_otherwise_says_so() -> None:
    with Receiver(Machine(lambda: Reply(400))) as server:
        assert refusal(kms(server.url, environ(server.url)), b"blob") == NO_SESSION.format("HTTP 400")
