"""What each sink makes of each answer, one by one, against a real server. `off` means: switched off."""

from __future__ import annotations

import pytest

from tests.support.http_server import Receiver, Reply
from tests.support.outcome import FAILED, LOOPBACK, NOTE, configured, outcome

KEY = "0123456789abcdef0123456789ABCDEF"


def reply(status: int, body: str = "", **headers: str) -> Reply:
    return Reply(status, body.encode(), {name.replace("_", "-"): value for name, value in headers.items()})


WEBHOOK = [
    (reply(200), "delivered"),
    (reply(201), "delivered"),
    (reply(202), "delivered"),
    (reply(204), "delivered"),
    (reply(299), "delivered"),
    (reply(301, Location="http://127.0.0.1:1/"), "rejected client_error 301"),
    (reply(302, Location="http://127.0.0.1:1/"), "rejected client_error 302"),
    (reply(307, Location="http://127.0.0.1:1/"), "rejected client_error 307"),
    (reply(400), "rejected client_error 400"),
    (reply(401), "rejected auth 401 off"),
    (reply(403), "rejected auth 403"),
    (reply(404), "rejected client_error 404"),
    (reply(405), "rejected client_error 405"),
    (reply(408), "rejected client_error 408"),
    (reply(409), "rejected client_error 409"),
    (reply(410), "rejected client_error 410 off"),
    (reply(413), "rejected payload_too_large 413"),
    (reply(422), "rejected client_error 422"),
    (reply(425), "rejected client_error 425"),
    (reply(429, Retry_After="7"), "rejected client_error 429"),
    (reply(451), "rejected client_error 451"),
    (reply(500), "unavailable server_error 500"),
    (reply(502), "unavailable server_error 502"),
    (reply(503, Retry_After="7"), "unavailable server_error 503"),
    (reply(504), "unavailable server_error 504"),
    (reply(599), "unavailable server_error 599"),
    (reply(600), "rejected protocol 600"),
]

SLACK_HOOK = [
    (reply(200, "ok"), "delivered"),
    (reply(200, "ok\n"), "delivered"),
    (reply(200, "something else"), "delivered"),  # servers that are compatible with Slack say what they like
    (reply(200, '{"success":true}'), "delivered"),
    (reply(200, '{"result":"success","msg":""}'), "delivered"),
    (reply(200, '{"error":null}'), "delivered"),
    (reply(200), "delivered"),
    (reply(201, "created"), "delivered"),
    (reply(202), "delivered"),
    (reply(204), "delivered"),
    (reply(200, "invalid_token"), "rejected auth invalid_token off"),
    (reply(200, '{"success":false,"error":"never_heard_of_it"}'), "unavailable protocol unknown_answer"),
    (reply(200, '{"ok":false}'), "unavailable protocol unknown_answer"),
    (reply(400, "invalid_payload"), "rejected client_error invalid_payload"),
    (reply(400, "user_not_found"), "rejected client_error user_not_found"),
    (reply(400, "invalid_token"), "rejected auth invalid_token off"),
    (reply(400, "no_text"), "rejected client_error no_text"),
    (reply(400, "invalid_blocks"), "rejected client_error invalid_blocks"),
    (reply(400, "something new"), "rejected client_error 400"),
    (reply(403, "action_prohibited"), "rejected client_error action_prohibited"),
    (reply(403, "posting_to_general_channel_denied"), "rejected client_error posting_to_general_channel_denied"),
    (reply(403, "invalid_token"), "rejected auth invalid_token off"),
    (reply(404, "channel_not_found"), "rejected client_error channel_not_found"),
    (reply(404, "no_service"), "rejected auth no_service off"),
    (reply(404, "no_active_hooks"), "rejected auth no_active_hooks off"),
    (reply(410, "channel_is_archived"), "rejected client_error channel_is_archived"),
    (reply(410, "gone"), "rejected client_error 410 off"),
    (reply(500, "rollup_error"), "unavailable server_error rollup_error"),
    (
        reply(429, '{"retry_after":1,"ok":false,"error":"rate_limited"}', Retry_After="1"),
        "unavailable rate_limited rate_limited after 1",
    ),
    (reply(429, "", Retry_After="2"), "unavailable rate_limited 429 after 2"),
    (reply(503), "unavailable server_error 503"),
    (reply(302), "rejected client_error 302"),
]

_SLACK_WORDS = {
    "invalid_auth not_authed account_inactive token_revoked token_expired missing_scope no_permission"
    " not_allowed_token_type ekm_access_denied": "rejected auth {} off",
    "channel_not_found not_in_channel is_archived restricted_action invalid_blocks no_text"
    " too_many_attachments": "rejected client_error {}",
    "msg_too_long msg_blocks_too_long": "rejected payload_too_large {}",
    "ratelimited rate_limited": "unavailable rate_limited {} after 1",
    "internal_error fatal_error service_unavailable request_timeout team_added_to_org"
    " org_login_required": "unavailable server_error {}",
    "never_heard_of_it": "unavailable protocol unknown_answer",
}
SLACK_API = [
    (reply(200, '{"ok":true,"channel":"C0123456789","ts":"1503435956.000247","message":{}}'), "delivered"),
    (
        reply(429, '{"ok":false,"error":"ratelimited"}', Retry_After="30"),
        "unavailable rate_limited ratelimited after 30",
    ),
    (reply(500), "unavailable server_error 500"),
    (reply(200, "<html>"), "delivered"),
    *(
        (reply(200, '{"ok":false,"error":"%s"}' % word), expected.format(word))  # noqa: UP031 - braces are JSON's
        for words, expected in _SLACK_WORDS.items()
        for word in words.split()
    ),
]

PAGERDUTY = [
    (reply(202, '{"status":"success","message":"Event processed","dedup_key":"k"}'), "delivered"),
    (reply(400, '{"status":"invalid event","errors":["\'payload\' is missing"]}'), "rejected client_error 400"),
    (
        reply(400, '{"status":"invalid event","errors":["Length of \'routing_key\' is incorrect (should be 32)"]}'),
        "rejected auth 400 off",
    ),
    (reply(429), "unavailable rate_limited 429"),
    (reply(500), "unavailable server_error 500"),
    (reply(503, Retry_After="3"), "unavailable server_error 503 after 3"),
    (reply(404), "rejected client_error 404"),
]

TEAMS = [
    (reply(202), "delivered"),
    (reply(200, "1"), "delivered"),
    (reply(429, Retry_After="10"), "unavailable rate_limited 429 after 10"),
    (reply(400), "rejected client_error 400"),
    (reply(401), "rejected auth 401 off"),
    (reply(404), "rejected client_error 404"),
    (reply(410), "rejected client_error 410 off"),
    (reply(408), "unavailable server_error 408"),
    (reply(425), "unavailable server_error 425"),
    (reply(413), "rejected payload_too_large 413"),
    (reply(502), "unavailable server_error 502"),
]

DISCORD = [
    (reply(204), "delivered"),
    (reply(200, '{"id":"1"}'), "delivered"),
    (reply(400, '{"code":50006,"message":"Cannot send an empty message"}'), "rejected client_error 400"),
    (reply(401), "rejected auth 401 off"),
    (reply(403), "rejected auth 403"),
    (reply(404, '{"code":10015,"message":"Unknown Webhook"}'), "rejected client_error 404 off"),
    (reply(429, '{"message":"slow","retry_after":0.5,"global":false}'), "unavailable rate_limited 429 after 0.5"),
    (reply(429, '{"retry_after":64000}', Retry_After="64"), "unavailable rate_limited 429 after 64"),
    (reply(429, "{}", X_RateLimit_Reset_After="1.25"), "unavailable rate_limited 429 after 1.25"),
    (reply(429, "not json"), "unavailable rate_limited 429"),
    (reply(500), "unavailable server_error 500"),
]

CASES = [
    *(("webhook", *case) for case in WEBHOOK),
    *(("slack hook", *case) for case in SLACK_HOOK),
    *(("slack api", *case) for case in SLACK_API),
    *(("pagerduty", *case) for case in PAGERDUTY),
    *(("teams", *case) for case in TEAMS),
    *(("discord", *case) for case in DISCORD),
]


def variables(sink: str, url: str) -> dict[str, str]:
    return {
        "webhook": {"SB_NOTIFICATION_WEBHOOK_URL": f"{url}/hook"},
        "slack hook": {"SB_NOTIFICATION_SLACK_URL": f"{url}/services/T0/B0/x"},
        "slack api": {
            "SB_NOTIFICATION_SLACK_TOKEN": "xoxb-canary",
            "SB_NOTIFICATION_SLACK_CHANNEL": "C0123456789",
            "SB_NOTIFICATION_SLACK_API_URL": f"{url}/api",
        },
        "pagerduty": {"SB_NOTIFICATION_PAGERDUTY_ROUTING_KEY": KEY, "SB_NOTIFICATION_PAGERDUTY_URL": url},
        "teams": {"SB_NOTIFICATION_TEAMS_URL": f"{url}/workflow?sig=canary"},
        "discord": {"SB_NOTIFICATION_DISCORD_URL": f"{url}/api/webhooks/1/canary"},
    }[sink]


@pytest.mark.parametrize(
    ("sink", "answer", "expected"),
    CASES,
    ids=[f"{sink}-{answer.status}-{number}" for number, (sink, answer, _) in enumerate(CASES)],
)
def test_an_answer_is_classed(monkeypatch: pytest.MonkeyPatch, sink: str, answer: Reply, expected: str) -> None:
    with Receiver(answer) as receiver:
        (target,) = configured(monkeypatch, {**LOOPBACK, **variables(sink, receiver.url)})
        assert outcome(target, FAILED if sink == "pagerduty" else NOTE) == expected
    assert len(receiver.seen) == 1  # one attempt is one request, and no redirect is followed


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (reply(408), "unavailable server_error 408"),
        (reply(429, Retry_After="7"), "unavailable rate_limited 429 after 7"),
        (reply(429, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT"), "unavailable rate_limited 429 after 0"),
        (reply(429, Retry_After="99999999"), "unavailable rate_limited 429 after 3600"),
        (reply(429, Retry_After="-1"), "unavailable rate_limited 429"),
        (reply(429, Retry_After="soon"), "unavailable rate_limited 429"),
        (reply(425), "rejected client_error 425"),
    ],
)
def test_the_webhook_retries_statuses_that_the_operator_lists(
    monkeypatch: pytest.MonkeyPatch, answer: Reply, expected: str
) -> None:
    with Receiver(answer) as receiver:
        listed = {"SB_NOTIFICATION_WEBHOOK_RETRY_STATUSES": "408,429"}
        (target,) = configured(monkeypatch, {**LOOPBACK, **variables("webhook", receiver.url), **listed})
        assert outcome(target) == expected
