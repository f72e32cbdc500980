"""pagerduty: Events API v2. A failing sweeper is an incident, resolved by its recovery; routine is a change event.

A failure triggers with one deduplication key for each sweeper, so that a second one joins the open incident. Warnings
trigger too, where the least severity is lowered to them, with severity `warning` and a key of their own: nothing
resolves a warning, so a human closes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any

from pydantic import AfterValidator, SecretStr

from app.core.config import name_of, variable
from app.core.errors import Fault, SinkRejected
from app.core.events import Event, Kind, Notification, Severity
from app.notify.format import body_lines, headline, to_json, truncate
from app.notify.sink import (
    JSON,
    TRANSIENT,
    Answer,
    Destination,
    Filter,
    Loudness,
    SecretUrl,
    SinkSettings,
    Transport,
    at_least,
    destination,
    judge,
    only,
    sink,
)

_KEY_LENGTH = 32
#: PagerDuty's limits: code points of a summary and of a key, bytes of a body (512 KiB, kept far below).
_SUMMARY, _DEDUP = 1024, 255
_SOURCE = "secrets-bridge-worker"
_SEVERITIES = {Severity.INFO: "info", Severity.WARN: "warning", Severity.ERROR: "error"}


def _routing_key(value: SecretStr | None) -> SecretStr | None:
    text = value.get_secret_value() if value else None
    if text is not None and not (len(text) == _KEY_LENGTH and text.isascii() and text.isalnum()):
        raise ValueError("not a routing key; accepted: the 32 letters and digits of an Events API v2 integration")
    return value


class PagerDuty(SinkSettings):
    """The service, by its integration key."""

    routing_key: Annotated[SecretStr | None, AfterValidator(_routing_key)] = variable(
        "SB_NOTIFICATION_PAGERDUTY_ROUTING_KEY",
        default=None,
        secret=True,
        meaning="integration key of an Events API v2 integration; resolve open incidents before changing it",
    )
    url: SecretUrl = variable(
        "SB_NOTIFICATION_PAGERDUTY_URL",
        default="https://events.pagerduty.com",
        meaning="base of the Events API; https://events.eu.pagerduty.com in the EU",
    )
    min_severity: Loudness = at_least("PAGERDUTY", "error")
    sweepers: Filter = only("PAGERDUTY")

    @property
    def enabled(self) -> bool:
        """Whether there is a key."""
        return self.routing_key is not None

    @property
    def destinations(self) -> Mapping[str, Destination]:
        """The API."""
        return {name_of(type(self), "url"): destination(self.url)}


def incident(event: Event) -> str:
    """Return the incident of an event, whose trigger and resolve must stay in order; empty when it has none."""
    if event.kind in (Kind.FAILED, Kind.RECOVERED):
        return f"{_SOURCE}/{event.component}"
    return ""


@sink("pagerduty", settings=PagerDuty, group=incident)
async def pagerduty(notification: Notification, settings: PagerDuty, receiver: str, transport: Transport) -> None:
    """Trigger or resolve an incident, or record a change."""
    del receiver
    assert settings.routing_key is not None
    path, content = message(notification)
    content = {"routing_key": settings.routing_key.get_secret_value(), **content}
    url = SecretStr(settings.url.get_secret_value().rstrip("/") + path)
    answer = await transport.post(url, to_json(content), JSON)
    if answer.status == HTTPStatus.BAD_REQUEST and _refuses_key(answer):
        raise SinkRejected(Fault.AUTH, str(answer.status), off=True)
    judge(answer, transport.now, TRANSIENT)


def message(notification: Notification) -> tuple[str, dict[str, Any]]:
    """Return the path and the body, without the routing key."""
    event = notification.event
    key = truncate(incident(event) or f"{_SOURCE}/{event.component}/{event.title}", _DEDUP)
    if event.kind is Kind.RECOVERED:
        return "/v2/enqueue", {"event_action": "resolve", "dedup_key": key}
    payload: dict[str, Any] = {
        "summary": truncate(headline(notification), _SUMMARY),
        "source": notification.deployment or _SOURCE,
        "timestamp": notification.time.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "+0000",
        "custom_details": {"said": list(body_lines(notification)), "event_id": notification.id, **event.metadata},
    }
    if event.severity is Severity.INFO and event.kind is not Kind.TEST:
        return "/v2/change/enqueue", {"payload": payload}
    payload |= {"severity": _SEVERITIES[event.severity], "component": event.component, "group": "secrets-bridge"}
    return "/v2/enqueue", {"event_action": "trigger", "dedup_key": key, "payload": payload, "client": _SOURCE}


def _refuses_key(answer: Answer) -> bool:
    errors = answer.json.get("errors")
    return isinstance(errors, list) and any("routing_key" in error for error in errors if isinstance(error, str))
