"""Whoever a worker speaks TLS to has shown a certificate that is good: each way out, each certificate that is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core import http
from tests.rules import ways_out
from tests.rules.certificates import BAD, GOOD
from tests.rules.ways_out import BEHIND, HOST, Given, Way
from tests.support.tls import Authority

#: Each way out: the name that a certificate must have, the way, and what is said of one that is refused.
WAYS: dict[str, tuple[str, Way, str]] = {
    "webhook": (HOST, ways_out.sink("WEBHOOK_URL"), "unavailable tls"),
    "slack": (HOST, ways_out.sink("SLACK_URL"), "unavailable tls"),
    "slack by token": (
        HOST,
        ways_out.sink(
            "SLACK_API_URL",
            b'{"ok": true}',
            SB_NOTIFICATION_SLACK_TOKEN="xoxb-canary",
            SB_NOTIFICATION_SLACK_CHANNEL="C1",
        ),
        "unavailable tls",
    ),
    "teams": (HOST, ways_out.sink("TEAMS_URL", b"", 202), "unavailable tls"),
    "discord": (HOST, ways_out.sink("DISCORD_URL", b"", 204), "unavailable tls"),
    "pagerduty": (
        HOST,
        ways_out.sink("PAGERDUTY_URL", b"{}", 202, SB_NOTIFICATION_PAGERDUTY_ROUTING_KEY="0" * 32),
        "unavailable tls",
    ),
    "email by STARTTLS": (HOST, ways_out.mail("starttls"), "unavailable tls"),
    "email by TLS": (HOST, ways_out.mail("implicit"), "unavailable tls"),
    "apprise": (HOST, ways_out.apprise, "unavailable server_error refused"),
    "heartbeat": (HOST, ways_out.heartbeat, "unavailable tls"),
    "a proxy": (HOST, ways_out.proxy, "unavailable proxy"),
    "behind a proxy": (BEHIND, ways_out.behind_a_proxy, "unavailable tls"),
    "argocd by its row": (HOST, ways_out.argocd(own=True), "cannot be reached (tls)"),
    "argocd by the system": (HOST, ways_out.argocd(own=False), "cannot be reached (tls)"),
    "argocd by another name": (
        "argo.example",
        ways_out.argocd(own=True, name="argo.example"),
        "cannot be reached (tls)",
    ),
    "vault": (HOST, ways_out.vault, "vault cannot be reached (tls)"),
    "aws": (HOST, ways_out.aws, "aws kms cannot be reached (tls)"),
    "traces": (HOST, ways_out.traces, "SSLError"),
}
each_way = pytest.mark.parametrize(("name", "way", "said"), WAYS.values(), ids=WAYS)


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    """Return one that is trusted and one that is not."""
    trusted, other = (Authority(tmp_path_factory.mktemp("ca")) for _ in range(2))
    return trusted, other


@pytest.fixture(autouse=True)
def _own_trust() -> Iterator[None]:
    """Forget who is trusted by the system, as it is in one test."""
    yield
    http.system_context.cache_clear()


@each_way
def test_a_server_with_a_good_certificate_is_spoken_to(
    authorities: tuple[Authority, Authority], monkeypatch: pytest.MonkeyPatch, name: str, way: Way, said: str
) -> None:
    del said
    assert way(Given(GOOD(*authorities, name), authorities[0], monkeypatch)) == ""


@pytest.mark.parametrize("kind", BAD)
@each_way
def test_a_server_with_a_bad_one_gets_nothing(  # noqa: PLR0913, PLR0917 - fixtures
    authorities: tuple[Authority, Authority],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    name: str,
    way: Way,
    said: str,
) -> None:
    refused = way(Given(BAD[kind](*authorities, name), authorities[0], monkeypatch))
    assert refused.endswith(said)


def test_every_sink_is_in_the_table() -> None:
    files = {path.stem for path in (Path(__file__).parents[2] / "sinks").glob("[!_]*.py")}
    assert files - {name.split()[0] for name in WAYS} == {"noop"}
