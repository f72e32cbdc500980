"""When a change has landed, or failed to.

Healthy and Synced are usually true before a change as well, and an operation may have failed long before it. So only
evidence from after the observation was created decides, where ArgoCD gives times: `reconciledAt`, which moves with each
full comparison, speaks for health and sync; an operation speaks by its end, or else by its start.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from app.gitops.documents import Application

#: ArgoCD writes whole seconds, by a clock that is not the database's.
SKEW = timedelta(seconds=2)
_BROKEN = ("Failed", "Error")


class Verdict(StrEnum):
    """What an observation becomes; the words are the api's."""

    ACTIVE = "active"
    APPLIED = "applied"
    FAILED = "failed"


def decide(application: Application, created_at: datetime, *, fresh: bool) -> Verdict:
    """Return what an observation of `created_at` becomes by this application; not `fresh`: whatever its times."""
    since = created_at.replace(microsecond=0) - SKEW
    phase = application.phase
    if phase in _BROKEN:
        ended = application.finished_at or application.started_at
        if not fresh or ended is None or ended >= since:
            return Verdict.FAILED
        phase = ""  # an operation from before says nothing of the change
    if application.health != "Healthy" or application.sync != "Synced" or phase not in ("", "Succeeded"):
        return Verdict.ACTIVE
    seen = application.reconciled_at or application.finished_at
    if fresh and (application.requested or (seen is not None and seen < since)):
        return Verdict.ACTIVE
    return Verdict.APPLIED
