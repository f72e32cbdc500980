"""What is read from ArgoCD's answers, and the snapshot that the api shows of it.

Shapes are checked: an answer that is no application must not count as one without a status. Absent and null are the
same, as in Go. Sizes are bounded, manifests never kept, and texts made fit for PostgreSQL's jsonb.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.core.jsonb import fit

#: Resources that a snapshot lists, characters of a message and of any other text in it.
MOST_RESOURCES, MOST_MESSAGE, MOST_TEXT = 500, 1024, 512


class WrongShape(ValueError):
    """An answer is not what was asked for; the text names the field and no value."""


@dataclass(frozen=True)
class Application:
    """An application's status. Texts are empty and times None where ArgoCD gives none."""

    health: str
    health_message: str
    sync: str
    revision: str
    phase: str
    reconciled_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    #: An operation is asked for and has not begun.
    requested: bool

    def snapshot(self) -> dict[str, Any]:
        """Return this part of `observed_state`."""
        return {
            "health_status": self.health,
            "health_message": self.health_message,
            "sync_status": self.sync,
            "sync_revision": self.revision,
            "operation_phase": self.phase,
        }


def application(content: object, name: str) -> Application:
    """Read the application called `name`. Raises WrongShape."""
    document = _object(content, "the answer")
    if _text(_part(document, "metadata"), "name") != name:
        raise WrongShape("metadata.name is not the application's")
    status = _part(document, "status")
    health, sync, operation = (_part(status, key) for key in ("health", "sync", "operationState"))
    return Application(
        health=_text(health, "status"),
        health_message=_text(health, "message", MOST_MESSAGE),
        sync=_text(sync, "status"),
        revision=_text(sync, "revision") or _revisions(sync),
        phase=_text(operation, "phase"),
        reconciled_at=_time(status, "reconciledAt"),
        started_at=_time(operation, "startedAt"),
        finished_at=_time(operation, "finishedAt"),
        requested=document.get("operation") is not None,
    )


def resources(content: object) -> dict[str, Any]:
    """Return the other part of `observed_state`, from a resource tree. Raises WrongShape.

    An application without resources has no `nodes`. Of very many the unhealthy ones are listed first; what is not
    listed is counted and not looked at.
    """
    nodes = _object(content, "the answer").get("nodes")
    if nodes is None:
        nodes = []
    if not isinstance(nodes, list):
        raise WrongShape("nodes is not a list")
    listed = nodes if len(nodes) <= MOST_RESOURCES else sorted(nodes, key=_is_well)[:MOST_RESOURCES]
    return {"resources": [_resource(_object(node, "nodes[]")) for node in listed], "resource_count": len(nodes)}


def _is_well(node: object) -> bool:
    return _part(_object(node, "nodes[]"), "health").get("status") in (None, "", "Healthy")


def _resource(node: Mapping[str, Any]) -> dict[str, str]:
    health = _part(node, "health")
    texts = {key: _text(node, key) for key in ("kind", "name", "namespace")}
    return {**texts, "health": _text(health, "status"), "message": _text(health, "message", MOST_MESSAGE)}


def _object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise WrongShape(f"{name} is not an object")
    return value


def _part(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    return {} if value is None else _object(value, name)


def _text(document: Mapping[str, Any], name: str, most: int = MOST_TEXT) -> str:
    value = document.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise WrongShape(f"{name} is not a text")
    return fit(value[:most])


def _revisions(sync: Mapping[str, Any]) -> str:
    """Return the revisions of an application with several sources, which has no single one."""
    value = sync.get("revisions")
    if value is None:
        return ""
    if not isinstance(value, list):
        raise WrongShape("revisions is not a list")
    return ", ".join(_text({"revisions[]": revision}, "revisions[]") for revision in value)[:MOST_TEXT]


def _time(document: Mapping[str, Any], name: str) -> datetime | None:
    text = _text(document, name)
    if not text:
        return None
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise WrongShape(f"{name} is not a time") from None
    if value.tzinfo is None:
        raise WrongShape(f"{name} is not a time with its zone")
    return value
