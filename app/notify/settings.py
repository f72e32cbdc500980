"""Settings that all sinks share."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_network
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from app.core.bounded_input import content
from app.core.config import variable
from app.core.egress import IPNetwork
from app.core.role import DeploymentSettings
from app.core.values import Cadence, Duration, HostPort, PositiveDuration, PositiveInt, WholeNumber


def _networks(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return tuple(ip_network(part.strip()) for part in value.split(",") if part.strip())
    except ValueError:
        raise ValueError("not a list of networks; accepted: CIDR, such as 127.0.0.0/8,10.0.0.0/8") from None


def _readable(value: str | None) -> str | None:
    if value is not None:
        try:
            content(value)
        except OSError:
            raise ValueError(
                "not a file that can be read; accepted: the path of a PEM file with CA certificates"
            ) from None
    return value


class NotificationSettings(DeploymentSettings):
    """How notifications are delivered, whatever the sink."""

    local_address: HostPort = variable(
        "SB_NOTIFICATION_LOCAL_ADDR",
        default="127.0.0.1:8092",
        meaning="where a process that only notifies serves /healthz, /readyz and /metrics",
    )
    timeout: PositiveDuration = variable(
        "SB_NOTIFICATION_TIMEOUT", default="10s", meaning="time for one attempt, from the name lookup to the last byte"
    )
    give_up: PositiveDuration = variable(
        "SB_NOTIFICATION_GIVE_UP",
        default="24h",
        meaning="age at which an undelivered notification becomes a dead letter",
    )
    failures_before: PositiveInt = variable(
        "SB_NOTIFICATION_FAILURES_BEFORE",
        default="1",
        meaning="attempts of a sweeper that fail in a row before it is told; what was not told has no recovery told",
    )
    remind_after: Duration = variable(
        "SB_NOTIFICATION_REMIND_AFTER",
        default="24h",
        meaning="a sweeper that fails for so long is told again, and so on; 0s: never",
    )
    allowed_networks: Annotated[tuple[IPNetwork, ...], BeforeValidator(_networks)] = variable(
        "SB_NOTIFICATION_ALLOWED_NETWORKS",
        default="",
        meaning="loopback and private networks that receivers may be in, as CIDR; http:// is fine there only",
    )
    ca_bundle: Annotated[str | None, AfterValidator(_readable)] = variable(
        "SB_NOTIFICATION_CA_BUNDLE",
        default=None,
        meaning="PEM file with CA certificates trusted in addition to the system's",
    )
    repeat: Duration = variable(
        "SB_NOTIFICATION_REPEAT_INTERVAL",
        default="5m",
        meaning="equal events so soon after one that was sent are held, and sent as one with sums; 0s: each by itself",
    )
    pace: Duration = variable(
        "SB_NOTIFICATION_PACE",
        default="15s",
        meaning="time between a sink's messages once its burst is used up; what waits is sent as one; 0s: no limit",
    )
    burst: PositiveInt = variable(
        "SB_NOTIFICATION_BURST", default="5", meaning="messages that a sink may get at once before the pace holds"
    )
    digest_over: WholeNumber = variable(
        "SB_NOTIFICATION_DIGEST_OVER",
        default="3",
        meaning="when more than so many wait for one sink they are sent as one message; 0: never",
    )
    cooldown: PositiveDuration = variable(
        "SB_NOTIFICATION_BREAKER_COOLDOWN",
        default="30s",
        meaning="rest after five failures in a row, doubled up to 10m; then one probe",
    )
    relay: Cadence = variable(
        "SB_NOTIFICATION_RELAY_INTERVAL",
        default="5s",
        meaning="how often due notifications are looked for that no message in Redis stands for",
    )
    retention: PositiveDuration = variable(
        "SB_NOTIFICATION_RETENTION", default="168h", meaning="how long delivered notifications are kept"
    )
    dead_retention: PositiveDuration = variable(
        "SB_NOTIFICATION_DEAD_RETENTION",
        default="2160h",
        meaning="how long dead letters are kept, at least as long as delivered ones",
    )

    @property
    def begin_within(self) -> timedelta:
        """How long after their claim attempts of a batch may begin. A receiver that is slow gets the rest later."""
        return timedelta(seconds=5)

    @property
    def lease(self) -> timedelta:
        """How long what is claimed is reserved: time to begin, the deadline of an attempt, and time to settle it."""
        return self.begin_within + self.timeout + timedelta(seconds=5)
