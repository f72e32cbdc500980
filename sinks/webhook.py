"""webhook: POSTs the control plane's JSON to any URL, signed if a secret is set (Standard Webhooks).

Every 4xx is permanent, except the statuses that the operator lists.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from functools import cached_property
from typing import Annotated
from urllib.parse import quote

from pydantic import AfterValidator, BeforeValidator, SecretStr

from app.core.config import name_of, variable
from app.core.events import Notification
from app.core.values import Bool
from app.notify.format import body, in_brackets, slack_escape, timestamp, to_json
from app.notify.sink import JSON, Filter, Loudness, SecretUrl, Transport, UrlSettings, at_least, judge, only, sink

#: Key lengths of the Standard Webhooks specification, bytes.
_SHORTEST, _LONGEST = 24, 64
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: Headers that the sink sets, or that would change what is sent.
_RESERVED = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding"})


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix("whsec_"), validate=True)


def _secrets(value: SecretStr | None) -> SecretStr | None:
    for secret in value.get_secret_value().split() if value else ():
        try:
            fine = secret.startswith("whsec_") and _SHORTEST <= len(_key(secret)) <= _LONGEST
        except ValueError:  # letters that are not ASCII; binascii.Error is one too
            fine = False
        if not fine:
            raise ValueError("not signing secrets; accepted: whsec_ and the base64 of 24 to 64 bytes, space-separated")
    return value


def _headers(value: SecretStr | None) -> SecretStr | None:
    if value is None:
        return None
    try:
        parsed = json.loads(value.get_secret_value())
    except (ValueError, RecursionError):
        parsed = None
    fine = isinstance(parsed, dict) and all(_header(name, text) for name, text in parsed.items())
    if not fine:
        raise ValueError('not headers; accepted: a JSON object such as {"X-Team": "ops"}, without webhook-* and Host')
    return value


def _header(name: str, text: object) -> bool:
    if not _NAME.fullmatch(name) or name.lower() in _RESERVED or name.lower().startswith("webhook-"):
        return False
    return isinstance(text, str) and text.isascii() and text.isprintable()


def _statuses(value: object) -> object:
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if not all(re.fullmatch(r"4[0-9]{2}", part) for part in parts):
        raise ValueError("not statuses; accepted: numbers from 400 to 499, such as 408,425,429")
    return frozenset(map(int, parts))


class Webhook(UrlSettings):
    """The URL, the form, the signature and the headers."""

    url: SecretUrl | None = variable(
        "SB_NOTIFICATION_WEBHOOK_URL",
        "SB_WORKER_WEBHOOK_URL",
        default=None,
        secret=True,
        meaning="URL that gets each event; by the second name also http:// and any private address",
    )
    format_slack: Bool = variable(
        "SB_NOTIFICATION_WEBHOOK_FORMAT_SLACK",
        "SB_WORKER_WEBHOOK_SLACK_FORMAT",
        default="false",
        meaning='send {"text": ...} as Slack and its likes want it',
    )
    cloudevents: Bool = variable(
        "SB_NOTIFICATION_WEBHOOK_CLOUDEVENTS",
        default="false",
        meaning="send a CloudEvents 1.0 envelope (structured mode)",
    )
    secrets: Annotated[SecretStr | None, AfterValidator(_secrets)] = variable(
        "SB_NOTIFICATION_WEBHOOK_SIGNING_SECRETS",
        default=None,
        secret=True,
        meaning="sign as Standard Webhooks; several whsec_ secrets, space-separated: a signature each (rotation)",
    )
    headers: Annotated[SecretStr | None, AfterValidator(_headers)] = variable(
        "SB_NOTIFICATION_WEBHOOK_HEADERS", default=None, secret=True, meaning="further headers, as a JSON object"
    )
    retry_statuses: Annotated[frozenset[int], BeforeValidator(_statuses)] = variable(
        "SB_NOTIFICATION_WEBHOOK_RETRY_STATUSES",
        default="",
        meaning="4xx statuses that are worth a retry; unset: none, every 4xx is permanent",
    )
    min_severity: Loudness = at_least("WEBHOOK", "info")
    sweepers: Filter = only("WEBHOOK")

    @cached_property
    def private(self) -> bool:
        """Whether the URL came by the Go worker's variable, which leads to sidecars and into clusters as a rule."""
        return name_of(type(self), "url").startswith("SB_WORKER_")


@sink("webhook", settings=Webhook, mixed=False)
async def webhook(notification: Notification, settings: Webhook, receiver: str, transport: Transport) -> None:
    """POST the event in the form that is configured."""
    del receiver
    content, kind = _content(notification, settings)
    custom: dict[str, str] = json.loads(settings.headers.get_secret_value()) if settings.headers else {}
    signature = signed(notification.id, int(transport.now.timestamp()), content, settings.secrets)
    replayed = {"webhook-replays": str(notification.replays)} if notification.replays else {}
    headers = {**JSON, **kind, **custom, **signature, **replayed}
    answer = await transport.post(settings.address, content, headers, private=settings.private)
    judge(answer, transport.now, settings.retry_statuses)


def _content(notification: Notification, settings: Webhook) -> tuple[bytes, dict[str, str]]:
    if settings.format_slack:
        return to_json({"text": slack_text(notification)}), {}
    if not settings.cloudevents:
        return to_json(body(notification)), {}
    envelope = {
        "specversion": "1.0",
        "id": notification.id,
        "source": _source(notification.deployment),
        "type": f"io.secrets-bridge.worker.{notification.event.kind}",
        "subject": notification.event.component,
        "time": timestamp(notification.time),
        "datacontenttype": "application/json",
        "data": body(notification),
    }
    return to_json(envelope), {"Content-Type": "application/cloudevents+json; charset=utf-8"}


def _source(deployment: str) -> str:
    """Return the URI reference of who sends an event."""
    return "/secrets-bridge/worker" + (f"/{quote(deployment, safe='')}" if deployment else "")


def slack_text(notification: Notification) -> str:
    """Return the line of the Go worker's Slack form, escaped for Slack; behind it what that left out.

    That is the counts, whose event it is, and of a replay that it is one.
    """
    event = notification.event
    detail = f" — {event.detail}" if event.detail else ""
    where = f" · {notification.deployment}" if notification.deployment else ""
    replayed = f" · replayed by hand; first told at {timestamp(notification.time)}" if notification.replays else ""
    return slack_escape(f"[{event.severity}] {event.title}{detail}{in_brackets(event.metadata)}{where}{replayed}")


def signed(identity: str, moment: int, content: bytes, secrets: SecretStr | None) -> dict[str, str]:
    """Return the headers by which a receiver recognizes a repeated event and, with secrets, its sender.

    `identity` is the event's id, `moment` the attempt's time in seconds since the epoch.
    """
    headers = {"webhook-id": identity, "webhook-timestamp": str(moment)}
    if secrets is None:
        return headers
    text = f"{identity}.{moment}.".encode() + content
    macs = (hmac.digest(_key(secret), text, "sha256") for secret in secrets.get_secret_value().split())
    return {**headers, "webhook-signature": " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs)}
