"""jobs-recovery: expires jobs whose claim ran out, most likely because the agent died while it executed them.

The api gives such a job to another agent as well when one asks; the grace leaves it the time to. A job that is
expired is never picked up again, and its parent request stays open: those are counted as `with_request`.

A job that carries a connection's id was its discovery: the connection is failed in the same transaction, unless another
job of its own is open, so that a dead agent does not keep it from being discovered until discover-stuck finds it.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from app.core.config import variable
from app.core.errors import Failure
from app.core.events import Severity
from app.core.values import Cadence, Duration
from app.discovery.connections import OPEN, connection_key
from app.sweeping.scans.indexed_scan import IndexedScan
from app.sweeping.scans.keyset_scan import KeysetScan
from app.sweeping.scans.page_scan import PageScan
from app.sweeping.scans.refusals import HELD, SLOW, step_aside
from app.sweeping.scans.scan import WAIT, Scan
from app.sweeping.scans.sql import LOCK_WAIT, sweep_sql
from app.sweeping.scans.tables import Index
from app.sweeping.strategy import Run
from app.sweeping.sweeper import EventText, SweeperSettings, sweeper

log = structlog.get_logger("sweep")


class JobsRecovery(SweeperSettings):
    """When a claim counts as dead."""

    interval: Cadence = variable(
        "SB_SWEEP_JOBS_INTERVAL",
        "SB_WORKER_JOBS_RECOVERY_INTERVAL",
        default="30s",
        meaning="how often dead claims are looked for",
    )
    grace: Duration = variable(
        "SB_SWEEP_JOBS_GRACE",
        default="0s",
        meaning="time after the end of a claim in which another agent may still take the job over",
    )


INDEX = Index("sync_jobs", "claim_expires_at", "(status = 'claimed'::text)")

PAGES, KEYS = sweep_sql(
    "sync_jobs",
    column="claim_expires_at",
    still="status = 'claimed'",
    before="<",
    change="UPDATE sync_jobs SET status = 'expired'",
    returning="job_type, request_id, payload ->> 'connection_id' AS connection",
    counted="""
         , count(*) FILTER (WHERE job_type = 'sync') AS sync
         , count(*) FILTER (WHERE job_type = 'discover') AS discover
         , count(*) FILTER (WHERE job_type = 'verify') AS verify
         , count(*) FILTER (WHERE job_type = 'delete') AS delete
         , count(*) FILTER (WHERE job_type = 'patch') AS patch
         , count(*) FILTER (WHERE job_type = 'read') AS read
         , count(request_id) AS with_request
         , array_agg(DISTINCT connection) FILTER (WHERE connection IS NOT NULL) AS connections""",
)

WRITABLE = """
SELECT count(*) > 0 AS present, coalesce(bool_or(has_column_privilege(attrelid, attnum, 'UPDATE')), false) AS writable
  FROM pg_attribute
 WHERE attrelid = to_regclass('provider_connections') AND attname = 'last_discover_status' AND NOT attisdropped
"""

# An admin may have had it discovered again meanwhile: then it runs for another job.
FAIL = f"""
WITH running AS MATERIALIZED (
    SELECT id FROM provider_connections
     WHERE id = ANY (%(ids)s::uuid[]) AND last_discover_status = 'running'
     ORDER BY id
       FOR NO KEY UPDATE
), open AS MATERIALIZED (
{OPEN}
), failed AS (
    UPDATE provider_connections
       SET last_discover_status = 'failure', last_discover_at = now(), last_discover_finished_at = now(),
           last_discover_error = 'the claim of its job ran out'
     WHERE id = ANY (ARRAY(SELECT id FROM running)) AND last_discover_status = 'running'
       AND {connection_key("id")} NOT IN (SELECT id FROM open)
 RETURNING 1
)
SELECT count(*) AS connections_failed FROM failed
"""  # noqa: S608 - all its parts are literals


class _Recovery(Scan):
    """Expires jobs, and fails the connections that they were to discover.

    A job whose connection somebody else holds is left to the next run: expired without it, nobody would look at the
    connection again before discover-stuck.
    """

    def _swept(self, run: Run, counts: dict[str, Any], *, alone: bool) -> dict[str, Any]:
        ids = list(_uuids(counts.pop("connections") or ()))
        return counts | (self._fail(run, ids, alone=alone) if ids else {})

    def _fail(self, run: Run, ids: list[str], *, alone: bool) -> dict[str, int]:
        """Fail these connections; when one cannot be written, its job alone is tried again, and expires without it."""
        found = run.row(WRITABLE)
        if not found["writable"]:
            if found["present"]:
                log.warning("connections of expired jobs stay running; `sb-worker check` has the GRANT", **_TASK)
            return {}
        fail = partial(run.row, FAIL, ids=ids)
        run.row(WAIT, wait=LOCK_WAIT)  # the jobs that a connection's own were expired with wait as well
        failed = step_aside(run, fail, raises=SLOW + HELD) if alone else fail()
        run.row(WAIT, wait=run.lock_timeout)
        if isinstance(failed, Failure):
            log.warning("the connection of an expired job could not be failed", **_TASK, **failed._asdict())
            return {}
        return failed


class _Pages(_Recovery, PageScan):
    pass


class _Keys(_Recovery, KeysetScan):
    pass


_TASK = {"task": "jobs-recovery"}


def _uuids(texts: Iterable[str]) -> Iterator[str]:
    """Yield those that are UUIDs, in any form that the api reads."""
    for text in texts:
        with suppress(ValueError):
            yield str(UUID(text))


@sweeper(
    "jobs-recovery",
    needs={"sync_jobs": ("SELECT", "UPDATE")},
    uses={"provider_connections.last_discover_status": ("SELECT", "UPDATE")},
    settings=JobsRecovery,
    index=INDEX,
    due=lambda own: PAGES.due.older(own.grace),
    text=EventText(
        Severity.WARN,
        "stuck jobs marked expired",
        "recover stuck jobs failed",
        "flipped",
        detail="claim_expires_at past; agent likely crashed mid-execute",
    ),
    counts=("sync", "discover", "verify", "delete", "patch", "read", "with_request", "connections_failed"),
)
def jobs_recovery(settings: JobsRecovery) -> IndexedScan:
    """Expire jobs whose claim ran out longer ago than the grace."""
    return IndexedScan(INDEX, _Keys(KEYS, settings.grace), _Pages(PAGES, settings.grace))
