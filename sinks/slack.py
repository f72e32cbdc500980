"""slack: Block Kit messages by an incoming webhook, or by a bot token and a channel (chat.postMessage).

Slack reports what went wrong by an error code in the body, under varying statuses, 200 among them: so the code decides
first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr, model_validator

from app.core.config import name_of, variable
from app.core.errors import Fault, SinkRejected, SinkUnavailable
from app.core.events import Notification
from app.notify.format import body_lines, headline, slack_escape, timestamp, to_json, truncate
from app.notify.sink import (
    TRANSIENT,
    Answer,
    Destination,
    Filter,
    Loudness,
    SecretUrl,
    SinkSettings,
    Token,
    Transport,
    at_least,
    destination,
    judge,
    only,
    seconds,
    sink,
)

#: Code points: Slack's limits of a header and a section, and a total well below the one that it refuses.
_HEADER, _SECTION, _TOTAL = 150, 3000, 8000

# Slack's error codes, from its documentation of both APIs. A code that is not here may be new: it is retried.
_BAD_CREDENTIALS = frozenset(
    {
        "invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "missing_scope",
        "no_permission", "not_allowed_token_type", "ekm_access_denied", "invalid_token", "no_service",
        "no_active_hooks",
    }
)  # fmt: skip
_PERMANENT = frozenset(
    {
        "channel_not_found", "not_in_channel", "is_archived", "channel_is_archived", "restricted_action",
        "msg_too_long", "msg_blocks_too_long", "invalid_blocks", "no_text", "too_many_attachments", "invalid_payload",
        "user_not_found", "action_prohibited", "posting_to_general_channel_denied",
    }
)  # fmt: skip
_LIMITED = frozenset({"ratelimited", "rate_limited"})
_TRANSIENT = frozenset(
    {
        "internal_error", "fatal_error", "service_unavailable", "request_timeout", "team_added_to_org",
        "org_login_required", "rollup_error",
    }
)  # fmt: skip
_EMOJI = {"info": ":information_source:", "warn": ":warning:", "error": ":rotating_light:"}


class Slack(SinkSettings):
    """A webhook, or a bot token and a channel."""

    url: SecretUrl | None = variable(
        "SB_NOTIFICATION_SLACK_URL", default=None, secret=True, meaning="a Slack incoming webhook"
    )
    token: Token | None = variable(
        "SB_NOTIFICATION_SLACK_TOKEN", default=None, secret=True, meaning="a Slack bot token, instead of a webhook"
    )
    channel: str = variable("SB_NOTIFICATION_SLACK_CHANNEL", default="", meaning="channel id, with a bot token")
    api: SecretUrl = variable(
        "SB_NOTIFICATION_SLACK_API_URL", default="https://slack.com/api", meaning="base of Slack's Web API"
    )
    min_severity: Loudness = at_least("SLACK", "warn")
    sweepers: Filter = only("SLACK")

    @model_validator(mode="after")
    def _either(self) -> Slack:
        if self.url and self.token:
            raise ValueError(
                "SB_NOTIFICATION_SLACK_URL: set together with SB_NOTIFICATION_SLACK_TOKEN; set one of them"
            )
        if bool(self.token) != bool(self.channel):
            raise ValueError(
                "SB_NOTIFICATION_SLACK_TOKEN: needs SB_NOTIFICATION_SLACK_CHANNEL beside it, and the reverse"
            )
        return self

    @property
    def enabled(self) -> bool:
        """Whether there is a webhook or a token."""
        return bool(self.url or self.token)

    @property
    def destinations(self) -> Mapping[str, Destination]:
        """The webhook, or the API."""
        field, url = ("url", self.url) if self.url else ("api", self.api)
        return {name_of(type(self), field): destination(url)}


@sink("slack", settings=Slack)
async def slack(notification: Notification, settings: Slack, receiver: str, transport: Transport) -> None:
    """Post one message."""
    del receiver
    content: dict[str, Any] = message(notification)
    headers = {"Content-Type": "application/json; charset=utf-8"}
    if settings.url is not None:
        answer = await transport.post(settings.url, to_json(content), headers)
    else:
        assert settings.token is not None
        url = SecretStr(settings.api.get_secret_value().rstrip("/") + "/chat.postMessage")
        bearer = {"Authorization": f"Bearer {settings.token.get_secret_value()}"}
        content = {"channel": settings.channel, **content, "unfurl_links": False}
        answer = await transport.post(url, to_json(content), {**headers, **bearer})
    _judge(answer, transport)


def message(notification: Notification) -> dict[str, Any]:
    """Return text and blocks, escaped: an event that quotes `<!channel>` must not notify everybody."""
    event = notification.event
    title = truncate(headline(notification), _HEADER)
    text = slack_escape(truncate("\n".join(body_lines(notification)) or event.title, _TOTAL // 2))
    blocks = [
        {"type": "header", "text": {"type": "plain_text", "text": title, "emoji": False}},
        {"type": "section", "text": {"type": "mrkdwn", "text": truncate(f"{_EMOJI[event.severity]} {text}", _SECTION)}},
        {
            "type": "context",
            "elements": [
                {
                    "type": "mrkdwn",
                    "text": f"{slack_escape(event.component)} · {timestamp(notification.time)} · {notification.id}",
                },
            ],
        },
    ]
    return {"text": slack_escape(title), "blocks": blocks}


def _judge(answer: Answer, transport: Transport) -> None:
    """Judge by the code, then by the status: what has no code that is known, and does not say no, was taken.

    Servers that are compatible with Slack answer 2xx and something of their own, such as `{"success":true}`.
    """
    error = answer.json.get("error", answer.text)
    code = error if isinstance(error, str) else ""
    wait = answer.retry_after(transport.now) or seconds(answer.json.get("retry_after"))
    if code in _BAD_CREDENTIALS:
        raise SinkRejected(Fault.AUTH, code, off=True)
    if code in _PERMANENT:
        raise SinkRejected(Fault.PAYLOAD_TOO_LARGE if code.endswith("too_long") else Fault.CLIENT_ERROR, code)
    if code in _LIMITED:
        raise SinkUnavailable(Fault.RATE_LIMITED, code, retry_after=wait or 1.0)
    if code in _TRANSIENT:
        raise SinkUnavailable(Fault.SERVER_ERROR, code, retry_after=wait)
    judge(answer, transport.now, TRANSIENT)
    if answer.json.get("ok") is False or answer.json.get("success") is False:  # by a code that is not documented
        raise SinkUnavailable(Fault.PROTOCOL, "unknown_answer")
