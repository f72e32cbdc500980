"""What each sink sends, to the letter."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook as Verifier

from app.core.events import Event, Kind, Notification, Severity
from sinks.webhook import signed
from tests.sinks.test_answers import KEY, reply, variables
from tests.support.http_server import Receiver, Seen
from tests.support.outcome import FAILED, LOOPBACK, NOTE, RECOVERED, WHEN, configured, digest_note, outcome

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(b"x" * 32).decode()
BODY = {
    "time": "2026-11-23T09:00:00.12Z",
    "severity": "warn",
    "component": "agents-stale",
    "title": "agents flagged stale",
    "detail": "cutoff=2026-11-23T08:55:00Z",
    "metadata": {"flipped": 3},
}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sends one note by one sink and returns what arrived."""

    def send(sink: str, notification: Notification = NOTE, answer: str = "ok", status: int = 200, **more: str) -> Seen:
        with Receiver(reply(status, answer)) as receiver:
            (target,) = configured(monkeypatch, {**LOOPBACK, **variables(sink, receiver.url), **more})
            assert outcome(target, notification) == "delivered"
        (seen,) = receiver.seen
        assert seen.method == "POST"
        return seen

    return send


def test_webhook_sends_the_control_planes_body(sent: Any) -> None:
    seen = sent("webhook")
    assert seen.body == json.dumps(BODY, separators=(",", ":")).encode()
    assert seen.path == "/hook"
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["webhook-id"] == NOTE.id
    assert "webhook-signature" not in seen.headers


def test_webhook_leaves_out_what_is_empty(sent: Any) -> None:
    seen = sent("webhook", Notification(NOTE.id, WHEN.replace(microsecond=0), Event("x", Severity.INFO, "t")))
    assert seen.json == {"time": "2026-11-23T09:00:00Z", "severity": "info", "component": "x", "title": "t"}


@pytest.mark.parametrize(
    ("notification", "text"),
    [
        (NOTE, "[warn] agents flagged stale — cutoff=2026-11-23T08:55:00Z (flipped=3)"),
        (RECOVERED, "[info] sweep recovered (failed_attempts=2)"),
        (FAILED, "[error] delete expired wraps failed — Timeout 57014"),
        (
            Notification(NOTE.id, WHEN, Event("x", Severity.INFO, "<!channel> & <b>")),
            "[info] &lt;!channel&gt; &amp; &lt;b&gt;",
        ),
    ],
)
def test_webhook_in_slacks_form_is_one_escaped_line_with_the_counts(
    sent: Any, notification: Notification, text: str
) -> None:
    assert sent("webhook", notification, SB_WORKER_WEBHOOK_SLACK_FORMAT="true").json == {"text": text}


def test_webhook_as_a_cloud_event(sent: Any) -> None:
    seen = sent("webhook", SB_NOTIFICATION_WEBHOOK_CLOUDEVENTS="true")
    assert seen.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert seen.json == {
        "specversion": "1.0",
        "id": NOTE.id,
        "source": "/secrets-bridge/worker",
        "type": "io.secrets-bridge.worker.swept",
        "subject": "agents-stale",
        "time": "2026-11-23T09:00:00.12Z",
        "datacontenttype": "application/json",
        "data": BODY,
    }


def test_webhook_signs_as_the_published_vector() -> None:
    headers = signed("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', SecretStr(SECRET))
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_webhook_signatures_are_verified_by_either_secret_during_a_rotation(sent: Any) -> None:
    seen = sent("webhook", SB_NOTIFICATION_WEBHOOK_SIGNING_SECRETS=f"{SECRET} {OTHER}")
    for secret in (SECRET, OTHER):
        assert Verifier(secret).verify(seen.body, dict(seen.headers)) == BODY
    stranger = Verifier("whsec_" + base64.b64encode(b"y" * 32).decode())
    with pytest.raises(Exception, match="No matching signature"):
        stranger.verify(seen.body, dict(seen.headers))


def test_webhook_sends_further_headers(sent: Any) -> None:
    seen = sent("webhook", SB_NOTIFICATION_WEBHOOK_HEADERS='{"X-Team": "ops", "Authorization": "Bearer canary"}')
    assert (seen.headers["x-team"], seen.headers["authorization"]) == ("ops", "Bearer canary")


def test_slack_sends_blocks_to_a_webhook(sent: Any) -> None:
    seen = sent("slack hook")
    assert seen.json == {
        "text": "[warn] agents flagged stale (flipped=3)",
        "blocks": [
            {
                "type": "header",
                "text": {"type": "plain_text", "text": "[warn] agents flagged stale (flipped=3)", "emoji": False},
            },
            {
                "type": "section",
                "text": {"type": "mrkdwn", "text": ":warning: cutoff=2026-11-23T08:55:00Z\nflipped=3"},
            },
            {
                "type": "context",
                "elements": [{"type": "mrkdwn", "text": f"agents-stale · 2026-11-23T09:00:00.12Z · {NOTE.id}"}],
            },
        ],
    }
    assert "authorization" not in seen.headers


def test_slack_sends_to_a_channel_with_a_token(sent: Any) -> None:
    seen = sent("slack api", answer='{"ok":true}')
    assert seen.path == "/api/chat.postMessage"
    assert seen.headers["authorization"] == "Bearer xoxb-canary"
    assert seen.headers["content-type"] == "application/json; charset=utf-8"
    assert list(seen.json) == ["channel", "text", "blocks", "unfurl_links"]
    assert (seen.json["channel"], seen.json["unfurl_links"]) == ("C0123456789", False)
    assert b"xoxb-canary" not in seen.body


def test_slack_keeps_to_its_limits_and_wakes_nobody(sent: Any) -> None:
    body = sent("slack hook", digest_note()).json
    assert len(body["blocks"]) <= 10
    assert len(body["blocks"][0]["text"]["text"]) <= 150
    assert len(body["blocks"][1]["text"]["text"]) <= 3000
    assert len(json.dumps(body, ensure_ascii=False)) <= 8000
    assert "<!channel>" not in json.dumps(body)


def test_pagerduty_triggers_an_incident_for_a_failure(sent: Any) -> None:
    seen = sent("pagerduty", FAILED, status=202)
    assert seen.path == "/v2/enqueue"
    assert seen.json == {
        "routing_key": KEY,
        "event_action": "trigger",
        "dedup_key": "secrets-bridge-worker/wraps-expired",
        "payload": {
            "summary": "[error] delete expired wraps failed",
            "source": "secrets-bridge-worker",
            "timestamp": "2026-11-23T09:00:00.120+0000",
            "custom_details": {"said": ["Timeout 57014"], "event_id": NOTE.id},
            "severity": "error",
            "component": "wraps-expired",
            "group": "secrets-bridge",
        },
        "client": "secrets-bridge-worker",
    }


def test_pagerduty_resolves_the_same_incident_on_recovery(sent: Any) -> None:
    assert sent("pagerduty", RECOVERED, status=202).json == {
        "routing_key": KEY,
        "event_action": "resolve",
        "dedup_key": "secrets-bridge-worker/wraps-expired",
    }


@pytest.mark.parametrize(("severity", "theirs"), [(Severity.WARN, "warning"), (Severity.ERROR, "error")])
def test_pagerduty_maps_severities(sent: Any, severity: Severity, theirs: str) -> None:
    payload = sent("pagerduty", Notification(NOTE.id, WHEN, Event("x", severity, "t" * 2000)), status=202).json[
        "payload"
    ]
    assert payload["severity"] == theirs
    assert len(payload["summary"]) == 1024


def test_pagerduty_notes_routine_as_a_change(sent: Any) -> None:
    routine = Event("wraps-expired", Severity.INFO, "expired wraps purged", "", {"deleted": 7})
    seen = sent("pagerduty", Notification(NOTE.id, WHEN, routine), status=202)
    assert seen.path == "/v2/change/enqueue"
    assert seen.json == {
        "routing_key": KEY,
        "payload": {
            "summary": "[info] expired wraps purged (deleted=7)",
            "source": "secrets-bridge-worker",
            "timestamp": "2026-11-23T09:00:00.120+0000",
            "custom_details": {"said": ["deleted=7"], "event_id": NOTE.id, "deleted": 7},
        },
    }


def test_teams_sends_an_adaptive_card(sent: Any) -> None:
    seen = sent("teams", status=202)
    wrap = {"type": "TextBlock", "wrap": True}
    assert seen.json == {
        "type": "message",
        "attachments": [
            {
                "contentType": "application/vnd.microsoft.card.adaptive",
                "contentUrl": None,
                "content": {
                    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                    "type": "AdaptiveCard",
                    "version": "1.2",
                    "body": [
                        {
                            **wrap,
                            "text": "[warn] agents flagged stale (flipped=3)",
                            "weight": "Bolder",
                            "size": "Medium",
                            "style": "heading",
                            "color": "Warning",
                        },
                        {**wrap, "text": "cutoff=2026-11-23T08:55:00Z"},
                        {**wrap, "text": "flipped=3"},
                        {**wrap, "text": f"agents-stale · 2026-11-23T09:00:00.12Z · {NOTE.id}", "size": "Small"},
                    ],
                    "msteams": {"width": "full"},
                },
            }
        ],
    }


def test_teams_keeps_below_what_teams_expands_too_far(sent: Any) -> None:
    assert len(sent("teams", digest_note(), status=202).body) <= 18 * 1024
    long = Notification(NOTE.id, WHEN, Event("x", Severity.INFO, "t", "d" * 50_000))
    assert len(sent("teams", long, status=202, SB_NOTIFICATION_TEAMS_MIN_SEVERITY="info").body) <= 18 * 1024


def test_discord_sends_an_embed_that_mentions_nobody(sent: Any) -> None:
    assert sent("discord", status=204, answer="").json == {
        "content": "[warn] agents flagged stale (flipped=3)",
        "embeds": [
            {
                "title": "[warn] agents flagged stale (flipped=3)",
                "description": "cutoff=2026-11-23T08:55:00Z\nflipped=3",
                "color": 0xF1C40F,
                "timestamp": "2026-11-23T09:00:00.12Z",
                "footer": {"text": f"agents-stale · {NOTE.id}"},
            }
        ],
        "allowed_mentions": {"parse": []},
    }


def test_discord_keeps_to_its_limits(sent: Any) -> None:
    body = sent("discord", digest_note(), status=204, answer="").json
    assert len(body["content"]) <= 2000
    assert len(body["embeds"][0]["title"]) <= 256
    assert len(body["embeds"][0]["description"]) <= 4096


TEST = Notification(NOTE.id, WHEN, Event("notify-test", Severity.INFO, "test notification", "", {"test": 1}, Kind.TEST))


def test_a_test_says_that_it_is_one_to_people(sent: Any) -> None:
    assert sent("slack hook", TEST).json["text"] == "[test] [info] test notification (test=1)"


def test_a_test_says_that_it_is_one_to_machines(sent: Any) -> None:
    assert sent("webhook", TEST).json["metadata"] == {"test": 1}
