"""Who met a fault that nobody outside sees: connections that do not come about are known by what was written of them.

That is read from the tables while the fault is at work, since a poll that succeeds afterwards writes over it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from app.storage.postgres import only_row

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment

_NEWEST = "SELECT coalesce(max(n), 0) FROM chaos.change"
# What is given back unsent keeps the reason of an earlier attempt, and counts one attempt less.
_ATTEMPTS = """
SELECT count(*) FROM chaos.change
 WHERE n > %(since)s AND relation = 'notification_delivery' AND after ->> 'target' = %(target)s
   AND before ->> 'state' = 'sending' AND after ->> 'state' <> 'sending' AND after ->> 'reason' = %(reason)s
   AND after -> 'attempts' = before -> 'attempts'
"""
_POLLS = "SELECT id, polls_count FROM gitops_observations WHERE last_error LIKE '%cannot be reached%'"
_POLLED = "SELECT id, polls_count FROM gitops_observations"


def attempts_that_failed(deployment: Deployment, target: str, reason: str) -> Callable[[], bool]:
    """Return what tells whether since now an attempt to notify this receiver has failed for this reason."""
    with deployment.sql() as sql:
        (since,) = only_row(sql.execute(_NEWEST))

    def told() -> bool:
        with deployment.sql() as sql:
            return bool(only_row(sql.execute(_ATTEMPTS, {"since": since, "target": target, "reason": reason}))[0])

    return told


def polls_that_failed(deployment: Deployment) -> Callable[[], bool]:
    """Return what tells whether since now a poll has failed because ArgoCD could not be reached."""
    with deployment.sql() as sql:
        before = dict(sql.execute(_POLLED).fetchall())

    def told() -> bool:
        with deployment.sql() as sql:
            return any(polls > before.get(observation, 0) for observation, polls in sql.execute(_POLLS))

    return told
