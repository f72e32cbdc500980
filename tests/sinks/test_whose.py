"""Each message to people says whose it is, and whether it was replayed; the webhook's JSON stays what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from app.core.events import Notification
from sinks import apprise, email, pagerduty
from tests.sinks.test_answers import reply, variables
from tests.support.http_server import Receiver, Seen
from tests.support.outcome import FAILED, LOOPBACK, NOTE, configured, digest_note, outcome

OURS = replace(NOTE, deployment="prod-eu")
REPLAYED = replace(OURS, replays=2)
SAYS_SO = "replayed by hand; first told at 2026-11-23T09:00:00.12Z"
TEXTS = {
    "slack hook": lambda seen: [seen["text"], seen["blocks"][0]["text"]["text"]],
    "slack api": lambda seen: [seen["text"], seen["blocks"][0]["text"]["text"]],
    "teams": lambda seen: [seen["attachments"][0]["content"]["body"][0]["text"]],
    "discord": lambda seen: [seen["content"], seen["embeds"][0]["title"]],
    "pagerduty": lambda seen: [seen["payload"]["summary"]],
}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sends one note by one sink and returns what arrived."""

    def send(sink: str, notification: Notification, **more: str) -> Seen:
        answer = '{"ok": true}' if sink == "slack api" else "ok"
        loud = {"SB_NOTIFICATION_PAGERDUTY_MIN_SEVERITY": "warn"}
        with Receiver(reply(202 if sink == "pagerduty" else 200, answer)) as receiver:
            (target,) = configured(monkeypatch, {**LOOPBACK, **loud, **variables(sink, receiver.url), **more})
            assert outcome(target, notification) == "delivered"
        (seen,) = receiver.seen
        return seen

    return send


@pytest.mark.parametrize("sink", TEXTS)
def test_a_message_names_the_deployment(sent: Any, sink: str) -> None:
    for text in TEXTS[sink](sent(sink, OURS).json):
        assert text == "[warn] prod-eu: agents flagged stale (flipped=3)"
    for text in TEXTS[sink](sent(sink, replace(digest_note(), deployment="prod-eu")).json):
        assert text.startswith("[warn] prod-eu: 40 notifications")


@pytest.mark.parametrize("sink", TEXTS)
def test_a_replay_says_so_and_when_it_happened(sent: Any, sink: str) -> None:
    seen = sent(sink, REPLAYED)
    for text in TEXTS[sink](seen.json):
        assert text == "[replayed] [warn] prod-eu: agents flagged stale (flipped=3)"
    assert SAYS_SO in seen.body.decode()


def test_mail_names_it_in_subject_and_body_and_so_does_apprise(sent: Any) -> None:
    mail = email.message(REPLAYED, "worker@example.org", "ops@example.org")
    title = "[replayed] [warn] prod-eu: agents flagged stale (flipped=3)"
    assert mail["Subject"] == title
    for part in mail.iter_parts():
        assert title in part.get_content()
        assert SAYS_SO in part.get_content()
    assert email.message(OURS, "worker@example.org", "ops@example.org")["Message-ID"] == mail["Message-ID"]
    content = apprise.message(REPLAYED)
    assert content["title"] == title
    assert SAYS_SO in content["body"]


def test_pagerduty_has_it_as_the_source_and_one_incident_however_it_is_told() -> None:
    first = pagerduty.message(replace(FAILED, deployment="prod-eu"))[1]
    again = pagerduty.message(replace(FAILED, id="another", deployment="prod-eu", replays=1))[1]
    assert first["payload"]["source"] == "prod-eu"
    assert first["dedup_key"] == again["dedup_key"] == "secrets-bridge-worker/wraps-expired"


def test_the_webhooks_text_says_it_behind_the_go_workers_line(sent: Any) -> None:
    line = "[warn] agents flagged stale — cutoff=2026-11-23T08:55:00Z (flipped=3) · prod-eu"
    form = {"SB_NOTIFICATION_WEBHOOK_FORMAT_SLACK": "true"}
    assert sent("webhook", OURS, **form).json == {"text": line}
    assert sent("webhook", REPLAYED, **form).json == {"text": f"{line} · {SAYS_SO}"}
    marked = sent("webhook", replace(OURS, deployment="<!channel>"), **form)
    assert marked.json["text"].endswith(" · &lt;!channel&gt;")


def test_a_cloud_event_has_it_in_its_source(sent: Any) -> None:
    seen = sent("webhook", replace(OURS, deployment="prod eu/1"), SB_NOTIFICATION_WEBHOOK_CLOUDEVENTS="true")
    assert seen.json["source"] == "/secrets-bridge/worker/prod%20eu%2F1"


def test_the_webhooks_json_is_the_same_and_a_header_tells_a_replay(sent: Any) -> None:
    plain, replayed = sent("webhook", NOTE), sent("webhook", REPLAYED)
    assert plain.body == replayed.body
    assert "prod-eu" not in json.dumps(dict(replayed.headers))
    assert "webhook-replays" not in plain.headers
    assert replayed.headers["webhook-replays"] == "2"
