"""A stand-in for ArgoCD: a local HTTPS server whose applications move as real ones do, from one state to the next.

An application's states begin at the first request for it. Most get healthy; some break, some never become healthy,
some do not exist. Now and then the server is busy and answers 503 with a Retry-After.
"""

from __future__ import annotations

import base64
import os
import time
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import Connection

from app.demo import certificates
from app.demo.web import Answer, Request, Web
from app.kms.local import key_id

#: Seconds that it is busy, of how many, from which second on; and the seconds of its Retry-After.
BUSY_SECONDS, EVERY_SECONDS, FIRST_SECONDS, RETRY_AFTER = 4.0, 30.0, 15.0, 3
#: The last states, by the application's number.
LANDS, BREAKS, STALLS, MISSING = "lands", "breaks", "stalls", "missing"
_ENDS = (LANDS, LANDS, BREAKS, LANDS, STALLS, LANDS, MISSING, LANDS)
#: Seconds at which an application begins to sync, begins to roll out, and is in its last state.
_SYNC, _ROLL_OUT, _END = 2.0, 4.0, 7.0


class Argocd(Web):
    """The server, on a free port of the loopback interface, and the rows that point at it."""

    def __init__(self, directory: Path) -> None:
        context, self._authority = certificates.make(directory)
        self._master = os.urandom(32)
        self._token = base64.urlsafe_b64encode(os.urandom(24)).decode()
        self._started = time.monotonic()
        self._first_request: dict[str, float] = {}
        self.requests = self.refused = 0
        super().__init__(self._answer, context)

    @property
    def busy(self) -> bool:
        """Whether it refuses requests now."""
        passed = time.monotonic() - self._started - FIRST_SECONDS
        return passed >= 0 and passed % EVERY_SECONDS < BUSY_SECONDS

    def variables(self) -> dict[str, str]:
        """Return the settings of a worker that polls it."""
        return {
            "SB_ENV": "dev",
            "SB_WRAP_MASTER_KEY": base64.b64encode(self._master).decode(),
            "SB_WORKER_GITOPS_ENABLED": "true",
        }

    def enter(self, connection: Connection[Any]) -> None:
        """Insert the endpoint as the api does, its token sealed, and a disabled one beside it."""
        data_key, nonce, wrap = os.urandom(32), os.urandom(12), os.urandom(12)
        sealed = {
            "url": self.url,
            "ca": self._authority,
            "token": AESGCM(data_key).encrypt(nonce, self._token.encode(), None),
            "nonce": nonce,
            "data_key": wrap + AESGCM(self._master).encrypt(wrap, data_key, None),
            "key_id": key_id(self._master),
        }
        for name, enabled in (("argocd", True), ("argocd-old", False)):
            connection.execute(_ENDPOINT, {**sealed, "name": name, "enabled": enabled})
        connection.execute(_REQUEST)

    def _answer(self, request: Request) -> Answer:
        self.requests += 1
        if self.busy:
            self.refused += 1
            busy = _error(14, "upstream connect error")
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, busy, {"Retry-After": str(RETRY_AFTER)})
        if request.authorization != f"Bearer {self._token}":
            return Answer(HTTPStatus.UNAUTHORIZED, _error(16, "no session information"))
        url = urlsplit(request.path)
        name, *tree = url.path.split("/")[4:]
        end = _ENDS[int(name.rpartition("-")[2]) % len(_ENDS)]
        if end == MISSING:
            if "project" in parse_qs(url.query):
                return Answer(HTTPStatus.NOT_FOUND, _error(5, "not found"))
            return Answer(HTTPStatus.FORBIDDEN, _error(7, "permission denied"))
        age = time.monotonic() - self._first_request.setdefault(name, time.monotonic())
        return Answer(HTTPStatus.OK, (_tree if tree else _application)(name, age, end))


def _error(code: int, text: str) -> dict[str, Any]:
    return {"error": text, "code": code, "message": text}


def _application(name: str, age: float, end: str) -> dict[str, Any]:
    now = datetime.now(UTC)
    begun = _time(now - timedelta(seconds=age - _SYNC))
    operation: dict[str, Any] | None = {"phase": "Running", "startedAt": begun}
    health, sync, reconciled = "Healthy", "Synced", now - timedelta(hours=1)
    if age < _SYNC:  # as it was before the change
        operation = None
    elif age < _ROLL_OUT:
        sync = "OutOfSync"
    else:
        operation = {"phase": "Succeeded", "startedAt": begun, "finishedAt": _time(now)}
        health, reconciled = "Progressing", now
        if age >= _END and end == LANDS:
            health = "Healthy"
        elif age >= _END and end == BREAKS:
            health, operation = "Degraded", {**operation, "phase": "Failed", "message": "one or more objects failed"}
    status: dict[str, Any] = {
        "health": {"status": health, "lastTransitionTime": _time(now)},
        "sync": {"status": sync, "revision": "4f1c2d9e"},
        "reconciledAt": _time(reconciled),
        "resources": [{"version": "v1", "kind": "Secret", "namespace": "apps", "name": f"{name}-credentials"}],
        "sourceType": "Kustomize",
        "summary": {"images": [f"registry.example/{name}:1.4.2"]},
    }
    if operation:
        status["operationState"] = operation
    return {
        "metadata": {"name": name, "namespace": "argocd", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"project": "apps", "destination": {"server": "https://kubernetes.default.svc", "namespace": "apps"}},
        "status": status,
    }


def _tree(name: str, age: float, end: str) -> dict[str, Any]:
    ready = age >= _END and end == LANDS
    rolled = {"status": "Healthy"} if ready else {"status": "Progressing", "message": "0 of 2 updated replicas ready"}
    common = {"namespace": "apps", "version": "v1"}
    return {
        "nodes": [
            {
                **common,
                "group": "external-secrets.io",
                "kind": "ExternalSecret",
                "name": name,
                "health": {"status": "Healthy"},
            },
            {**common, "kind": "Secret", "name": f"{name}-credentials"},
            {**common, "group": "apps", "kind": "Deployment", "name": name, "health": rolled},
        ],
        "orphanedNodes": [],
    }


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


_ENDPOINT = """
INSERT INTO argocd_endpoints (name, base_url, tls_ca_pem, enabled, token_ciphertext, token_nonce,
                              token_data_key_ciphertext, token_kms_key_id)
VALUES (%(name)s, %(url)s, %(ca)s, %(enabled)s, %(token)s, %(nonce)s, %(data_key)s, %(key_id)s)
"""

_REQUEST = """
INSERT INTO access_requests (requester_id, type, justification, status)
VALUES ('demo', 'update', 'a secret was rotated', 'executed')
"""
