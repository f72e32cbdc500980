"""Wrong settings of sinks: every problem told at boot, no value shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors import SWEEPERS
from app.core.errors import ConfigError
from app.worker.loading import load
from sinks import SINKS

CANARY = "canary"
CLOSED = "plain http:// and closed addresses (loopback, private) are for networks in SB_NOTIFICATION_ALLOWED_NETWORKS"
NEVER = "an address that is never dialled, whatever is allowed"
WRONG = [
    ("WEBHOOK_URL", "canary", "not a URL; accepted: https://host/path"),
    ("WEBHOOK_URL", "ftp://canary/", "not a URL"),
    ("WEBHOOK_URL", "https://canary:99999/", "not a URL"),
    ("WEBHOOK_URL", "https://canary /", "not a URL"),
    ("WEBHOOK_URL", " https://canary/", "not a URL"),
    ("WEBHOOK_URL", "https://canary..example/", "not a URL"),
    ("WEBHOOK_URL", "https://canary\x7f/", "not a URL"),
    ("WEBHOOK_URL", "https://canary\r\nX-A: b/", "not a URL"),
    ("WEBHOOK_URL", "http://canary.example.org/", CLOSED),
    ("WEBHOOK_URL", "https://127.0.0.1/canary", CLOSED),
    ("WEBHOOK_URL", "https://10.0.0.1/canary", CLOSED),
    ("WEBHOOK_URL", "https://169.254.169.254/canary", NEVER),
    ("WEBHOOK_URL", "http://[fe80::1]/canary", NEVER),
    ("SLACK_URL", "https://10.0.0.1/canary", CLOSED),
    ("WEBHOOK_URL", "https://[::1]/canary", CLOSED),
    ("WEBHOOK_FORMAT_SLACK", "yes", "not a boolean"),
    ("WEBHOOK_SIGNING_SECRETS", "canary", "not signing secrets; accepted: whsec_"),
    ("WEBHOOK_SIGNING_SECRETS", "whsec_Y2FuYXJ5", "not signing secrets"),
    ("WEBHOOK_HEADERS", "canary", "not headers; accepted: a JSON object"),
    ("WEBHOOK_HEADERS", '{"X-A": "canary\\r\\nX-B: c"}', "not headers"),
    ("WEBHOOK_HEADERS", '{"Host": "canary"}', "not headers"),
    ("WEBHOOK_HEADERS", '{"webhook-id": "canary"}', "not headers"),
    ("WEBHOOK_RETRY_STATUSES", "500", "not statuses; accepted: numbers from 400 to 499"),
    ("WEBHOOK_MIN_SEVERITY", "loud", "not a severity; accepted: info, warn, error"),
    ("WEBHOOK_SWEEPERS", "Canary!", "not a list of sweepers"),
    ("SLACK_TOKEN", "canary\nx", "not a token; accepted: printable ASCII"),
    ("SLACK_TOKEN", "xoxb-canary", "needs SB_NOTIFICATION_SLACK_CHANNEL beside it"),
    ("PAGERDUTY_ROUTING_KEY", "canary", "not a routing key; accepted: the 32 letters and digits"),
    ("PAGERDUTY_URL", "canary", "not a URL"),
    ("TEAMS_URL", "http://canary/", CLOSED),
    ("DISCORD_URL", "//canary", "not a URL"),
    ("APPRISE_URLS", "canary", "not Apprise URLs; accepted: scheme://"),
    ("ALLOWED_NETWORKS", "10.0.0.1/8", "not a list of networks; accepted: CIDR"),
    ("CA_BUNDLE", "/no/such/canary.pem", "not a file that can be read; accepted: the path of a PEM"),
    ("PACE", "fast", "not a duration"),
    ("BURST", "0", "must be at least 1"),
    ("DIGEST_OVER", "-1", "must not be negative"),
    ("TIMEOUT", "0s", "must be more than 0"),
    ("RELAY_INTERVAL", "0s", "must be more than 0"),
]


@pytest.fixture(autouse=True)
def _servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://127.0.0.1/x")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1")


@pytest.mark.parametrize(
    ("name", "value", "problem"), WRONG, ids=[f"{n}-{number}" for number, (n, _, _) in enumerate(WRONG)]
)
def test_a_wrong_setting_is_told(monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str) -> None:
    monkeypatch.setenv(f"SB_NOTIFICATION_{name}", value)
    with pytest.raises(ConfigError) as told:
        load(SWEEPERS, SINKS)
    (line,) = told.value.problems
    assert line.startswith(f"SB_NOTIFICATION_{name}: {problem}")
    assert CANARY not in line.lower()


#: What the Go worker's variable takes, and what it does not.
GO_URLS = [
    ("http://canary.monitoring:9093", None),
    ("http://127.0.0.1:9093/canary", None),
    ("http://localhost/canary", None),
    ("http://[::1]:9093/canary", None),
    ("https://10.0.0.1/canary", None),
    ("http://canary.example.org/", None),
    ("http://user:canary@10.0.0.1/", None),
    ("http://169.254.169.254/canary", NEVER),
    ("http://[fd00:ec2::254]/canary", NEVER),
    ("http://[::ffff:169.254.1.1]/canary", NEVER),
    ("https://0.0.0.0/canary", NEVER),
    ("canary:9093", "not a URL; accepted: https://host/path"),
]


@pytest.mark.parametrize(("url", "problem"), GO_URLS, ids=[str(number) for number in range(len(GO_URLS))])
@pytest.mark.parametrize("name", ["SB_WORKER_WEBHOOK_URL", "SB_WORKER_WEBHOOK_URL_FILE"])
def test_the_go_workers_variable_takes_what_go_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, url: str, problem: str | None
) -> None:
    (tmp_path / "url").write_text(url)
    monkeypatch.setenv(name, str(tmp_path / "url") if name.endswith("_FILE") else url)
    if problem is None:
        assert [target.name for target in load(SWEEPERS, SINKS).targets] == ["noop", "webhook"]
        return
    with pytest.raises(ConfigError) as told:
        load(SWEEPERS, SINKS)
    (line,) = told.value.problems
    assert line.startswith(f"{name}: {problem}")
    assert CANARY not in line.lower()


def test_our_own_variable_stays_strict_beside_the_go_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And its file too, which is read before the other name."""
    (tmp_path / "url").write_text("http://canary.monitoring:9093")
    monkeypatch.setenv("SB_WORKER_WEBHOOK_URL", "http://canary.monitoring:9093")
    monkeypatch.setenv("SB_NOTIFICATION_WEBHOOK_URL_FILE", str(tmp_path / "url"))
    with pytest.raises(ConfigError) as told:
        load(SWEEPERS, SINKS)
    assert told.value.problems[0].startswith(f"SB_NOTIFICATION_WEBHOOK_URL_FILE: {CLOSED}")


@pytest.mark.parametrize(
    ("host", "more", "problem"),
    [
        ("10.0.0.1", {}, "mail without TLS and closed addresses (loopback, private) are for networks in"),
        ("169.254.169.254", {}, NEVER),
        ("mail.example.org", {"TLS": "none", "ALLOW_PLAINTEXT": "true"}, "mail without TLS and closed addresses"),
    ],
)
def test_a_mail_server_that_is_never_dialled_is_told(
    monkeypatch: pytest.MonkeyPatch, host: str, more: dict[str, str], problem: str
) -> None:
    for name, value in {"HOST": host, "FROM": "a@example.org", "TO": "b@example.org", **more}.items():
        monkeypatch.setenv(f"SB_NOTIFICATION_EMAIL_{name}", value)
    with pytest.raises(ConfigError) as told:
        load(SWEEPERS, SINKS)
    (line,) = told.value.problems
    assert line.startswith(f"SB_NOTIFICATION_EMAIL_HOST: {problem}")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("PROXY_URL", "canary", "not a proxy; accepted: http://host:port or https://host:port"),
        ("PROXY_URL", "socks5://canary:1080", "not a proxy"),
        ("PROXY_URL", "http://canary:3128/path", "not a proxy"),
        ("PROXY_URL", "http://canary:99999", "not a proxy"),
        ("PROXY_URL", "http://canary:0", "not a proxy"),
        ("PROXY_URL", "http://can ary:3128", "not a proxy"),
        ("PROXY_URL", "http://169.254.169.254:3128", "an address that is never dialled"),
        ("NO_PROXY", "canary!", "not a list of hosts; accepted: names, .suffixes, addresses and CIDR"),
        ("NO_PROXY", "10.0.0.0/33", "not a list of hosts"),
    ],
)
def test_a_wrong_proxy_is_told(monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str) -> None:
    monkeypatch.setenv(f"SB_EGRESS_{name}", value)
    with pytest.raises(ConfigError) as told:
        load(SWEEPERS, SINKS)
    (line,) = told.value.problems
    assert line.startswith(f"SB_EGRESS_{name}: {problem}")
    assert CANARY not in line.lower()


def test_a_filter_of_a_sweeper_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB_NOTIFICATION_NOOP_SWEEPERS", "wraps-expired,-agent-stale")
    with pytest.raises(ConfigError) as told:
        load(SWEEPERS, SINKS)
    assert told.value.problems[0].startswith(
        "SB_NOTIFICATION_NOOP_SWEEPERS: name 2 of the list is no sweeper's (did you mean agents-stale?); accepted: "
    )


def test_the_go_workers_names_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB_WORKER_WEBHOOK_URL", "https://example.org/hook")
    monkeypatch.setenv("SB_WORKER_WEBHOOK_SLACK_FORMAT", "true")
    names = [target.name for target in load(SWEEPERS, SINKS).targets]
    assert names == ["noop", "webhook"]


def test_only_the_log_is_on_by_default() -> None:
    assert [target.name for target in load(SWEEPERS, SINKS).targets] == ["noop"]


def test_a_fingerprint_changes_with_the_configuration_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint() -> str:
        return load(SWEEPERS, SINKS).targets[1].fingerprint

    monkeypatch.setenv("SB_NOTIFICATION_WEBHOOK_URL", "https://example.org/1")
    first = fingerprint()
    assert fingerprint() == first
    monkeypatch.setenv("SB_NOTIFICATION_WEBHOOK_URL", "https://example.org/2")
    assert fingerprint() != first
