"""A stand-in for ArgoCD, and rows of the control plane that point at it."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import Connection
from pydantic import SecretStr

from actors.gitops_poller import GitopsPoller
from app.kms.local import key_id, parse_master
from tests.support.http_server import Reply, Seen

MASTER = base64.b64encode(bytes(range(32))).decode()
TOKEN = "canary-argocd-token"
ON = {"SB_WORKER_GITOPS_ENABLED": "true", "SB_ENV": "dev", "SB_WRAP_MASTER_KEY": MASTER}
CREATED = datetime(2026, 11, 23, 9, 0, 0, 500_000, tzinfo=UTC)
AFTER, BEFORE = "2026-11-23T09:00:30Z", "2026-11-23T08:59:00Z"


def settings(**fields: Any) -> GitopsPoller:
    """Return the poller's settings, switched on."""
    return GitopsPoller(gitops=True, master_key=SecretStr(MASTER), **fields)


def document(name: str, health: str = "Healthy", sync: str = "Synced", **status: Any) -> dict[str, Any]:
    """Return an application as ArgoCD answers it, with what matters and what does not."""
    return {
        "metadata": {"name": name, "namespace": "argocd", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"project": "default", "destination": {"server": "https://kubernetes.default.svc"}, "source": {}},
        "status": {
            "sync": {"status": sync, "revision": "6d2f1c"},
            "health": {"status": health, "lastTransitionTime": "2026-11-23T08:00:00Z"},
            "summary": {"images": ["canary-image"]},
            **status,
        },
    }


TREE = {
    "nodes": [
        {
            "version": "v1",
            "kind": "Secret",
            "namespace": "apps",
            "name": "db",
            "uid": "1",
            "info": [{"name": "canary", "value": "canary"}],
        },
        {
            "group": "apps",
            "version": "v1",
            "kind": "Deployment",
            "namespace": "apps",
            "name": "api",
            "health": {"status": "Degraded", "message": "0 of 2 ready"},
        },
    ],
    "orphanedNodes": [{"kind": "Pod", "name": "orphan"}],
}


class Argo:
    """Answers as a real ArgoCD does; what an application says is looked up at each request."""

    def __init__(self, applications: Mapping[str, Any] | None = None, token: str = TOKEN) -> None:
        self.applications: dict[str, Any] = dict(applications or {})
        self.trees: dict[str, Any] = {}
        self.token = token
        self.pause: Callable[[str], float] = lambda _name: 0.0
        self.under_way = 0
        self.most_at_once = 0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def __call__(self, seen: Seen) -> Reply:
        with self._lock:
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            return self._answer(seen)
        finally:
            with self._lock:
                self.under_way -= 1

    def _answer(self, seen: Seen) -> Reply:
        parts = urlsplit(seen.path)
        words = parts.path.split("/api/v1/applications/")[1].split("/")
        name, query = unquote(words[0]), parse_qs(parts.query)
        self._over.wait(self.pause(name))
        if seen.headers.get("authorization") != f"Bearer {self.token}":
            return error(401, 16, "no session information")
        found = (self.trees if len(words) > 1 else self.applications).get(name, TREE if len(words) > 1 else None)
        if isinstance(found, Reply):
            return found
        if found is None:
            return error(404, 5, "not found") if "project" in query else error(403, 7, "permission denied")
        return reply(found)


def reply(content: Any, status: int = 200) -> Reply:
    """Return an answer of JSON."""
    return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


def error(status: int, code: int, text: str) -> Reply:
    """Return an error in ArgoCD's form."""
    return reply({"error": text, "code": code, "message": text}, status)


def seal(token: str = TOKEN) -> dict[str, Any]:
    """Return a token's columns, sealed as the api does it with the key service `local`."""
    master, data_key = bytes(parse_master(MASTER)), os.urandom(32)
    nonce, wrap = os.urandom(12), os.urandom(12)
    return {
        "token_ciphertext": AESGCM(data_key).encrypt(nonce, token.encode(), None),
        "token_nonce": nonce,
        "token_data_key_ciphertext": wrap + AESGCM(master).encrypt(wrap, data_key, None),
        "token_kms_key_id": key_id(master),
    }


def insert_endpoint(sql: Connection[Any], name: str, base_url: str, **columns: Any) -> str:
    """Insert an endpoint with a sealed token and return its id."""
    row = {"name": name, "base_url": base_url, **seal(), **columns}
    names = ", ".join(row)
    places = ", ".join(f"%({name})s" for name in row)
    found = sql.execute(f"INSERT INTO argocd_endpoints ({names}) VALUES ({places}) RETURNING id::text".encode(), row)
    return str((found.fetchone() or [""])[0])


def insert_observations(sql: Connection[Any], endpoint: str, *names: str, **columns: Any) -> list[str]:
    """Insert observations, one for each application, and return their ids."""
    request = sql.execute(
        "INSERT INTO access_requests (requester_id, type, justification) VALUES ('u', 'update', 'j') RETURNING id"
    ).fetchone()
    assert request is not None
    ids = []
    for name in names:
        row = {
            "request_id": request[0],
            "argocd_endpoint_id": endpoint,
            "application_name": name,
            "polling_state": "queued",
            "created_at": CREATED,
            **columns,
        }
        keys, places = ", ".join(row), ", ".join(f"%({key})s" for key in row)
        found = sql.execute(f"INSERT INTO gitops_observations ({keys}) VALUES ({places}) RETURNING id".encode(), row)
        ids.append(str((found.fetchone() or [""])[0]))
    return ids


def again(sql: Connection[Any]) -> None:
    """Let the next run be in a new slot, with everything due."""
    with suppress(Exception):
        sql.execute("UPDATE secrets_bridge_worker.sweep_state SET last_slot = 'epoch', previous_slot = 'epoch'")
        sql.execute("DELETE FROM secrets_bridge_worker.sweep_run")
    sql.execute("UPDATE gitops_observations SET last_polled_at = last_polled_at - interval '1 hour'")
