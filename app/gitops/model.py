"""What passes between the sweep and its poller. Light: a process that polls nothing imports no HTTP for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from app.gitops.verdict import Verdict
from app.kms.envelope import Envelope


class PollOutcome(StrEnum):
    """How a poll ended: a closed set, fit for a label."""

    OK = "ok"
    PARTIAL = "partial"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    BUSY = "busy"
    HTTP_ERROR = "http_error"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    BROKEN = "broken"
    CONTENT = "content"
    SHAPE = "shape"
    UNWRAP = "unwrap"
    CLIENT = "client"
    SKIPPED = "skipped"
    #: An error that nobody thought of, in the work for one row.
    UNEXPECTED = "unexpected"


@dataclass(frozen=True)
class Endpoint:
    """An ArgoCD."""

    id: str
    base_url: str = field(repr=False)
    tls_ca_pem: str | None = field(repr=False)
    tls_server_name: str | None = field(repr=False)
    envelope: Envelope = field(repr=False)
    #: Whether its last poll failed.
    unhealthy: bool = False


@dataclass(frozen=True)
class Observation:
    """One claimed observation: what to ask for, and what to compare with when the result is written."""

    id: str
    endpoint: str
    application: str = field(repr=False)
    #: Parameters to ask again with, after a 403: `project`, `appNamespace`.
    known: Mapping[str, str] = field(repr=False)
    polls_count: int
    #: `last_polled_at` as it was found, in PostgreSQL's words: it may be a time that Python has none for.
    polled_before: str | None
    claimed_at: datetime
    created_at: datetime


class Result(NamedTuple):
    """What a poll brought: `state` is the new part of the snapshot, None to keep the old one whole."""

    observation: Observation
    outcome: PollOutcome
    verdict: Verdict
    error: str | None
    state: Mapping[str, Any] | None


class EndpointHealth(NamedTuple):
    """How an endpoint was found: its error, None when it is well, and how long it wants to rest, seconds."""

    endpoint: str
    error: str | None
    rest: float
