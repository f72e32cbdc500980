"""reveal-sessions-expired: ends reveal sessions whose time is over, and every wrap of theirs that nobody has opened.

That is a security guarantee of the control plane: after the end of a session none of its wraps opens any more. So a
session is marked as ended with its wraps or not at all. One with a wrap that PostgreSQL refuses to write has its other
wraps ended and stays due; the run has failed, and is tried again. Wraps that were opened or are gone need nothing. A
wrap that several sessions share ends with the first of them, as the api's own Hide has it.
"""

from collections import Counter
from functools import partial

import structlog

from app.core.config import variable
from app.core.errors import Failure
from app.core.events import Severity
from app.core.values import Cadence
from app.sweeping.scans.due import Due
from app.sweeping.scans.keyset_scan import KeysetScan
from app.sweeping.scans.refusals import step_aside
from app.sweeping.scans.sql import KeysetSql
from app.sweeping.strategy import Run, Step
from app.sweeping.sweeper import EventText, SweeperSettings, sweeper

log = structlog.get_logger("sweep")

#: The SQLSTATE of a statement that was cancelled, by statement_timeout or with its whole step since the lease is lost.
TOO_SLOW = "57014"


class RevealSessionsExpired(SweeperSettings):
    """When sessions are looked at."""

    interval: Cadence = variable(
        "SB_SWEEP_REVEAL_INTERVAL",
        "SB_WORKER_REVEAL_SESSIONS_EXPIRED_INTERVAL",
        default="5s",
        meaning="how often reveal sessions whose time is over are looked for",
    )


# A session of which others hold a wrap is left to the next run: the wrap is being opened, or moved. What has expired
# already keeps its time: an end is never moved forward.
END = """
WITH due AS MATERIALIZED (
    SELECT id, expires_at FROM reveal_sessions
     WHERE expired_at IS NULL AND expires_at >= %(after)s::timestamptz AND expires_at <= %(cutoff)s
     ORDER BY expires_at
    OFFSET %(skip)s
     LIMIT %(limit)s
), held AS MATERIALIZED (
    SELECT id, wrap_ids FROM reveal_sessions
     WHERE NOT %(passing)s AND id = ANY (ARRAY(SELECT id FROM due)) AND expired_at IS NULL AND expires_at <= %(cutoff)s
       FOR NO KEY UPDATE SKIP LOCKED
), live AS MATERIALIZED (
    SELECT id FROM secret_wraps
     WHERE id = ANY (ARRAY(SELECT unnest(wrap_ids) FROM held)) AND consumed_at IS NULL AND expires_at > now()
), taken AS MATERIALIZED (
    SELECT id FROM secret_wraps
     WHERE id = ANY (ARRAY(SELECT id FROM live)) AND consumed_at IS NULL AND expires_at > now()
       FOR NO KEY UPDATE SKIP LOCKED
), wraps AS (
    UPDATE secret_wraps SET expires_at = now()
     WHERE id = ANY (ARRAY(SELECT id FROM taken)) AND consumed_at IS NULL AND expires_at > now()
 RETURNING 1
), ended AS (
    UPDATE reveal_sessions AS s SET expired_at = now(), expired_reason = 'ttl'
     WHERE s.id = ANY (ARRAY(SELECT id FROM held)) AND s.expired_at IS NULL AND s.expires_at <= %(cutoff)s
       AND NOT coalesce(s.wrap_ids && ARRAY(SELECT id FROM live EXCEPT SELECT id FROM taken), false)
 RETURNING 1
)
SELECT (SELECT count(*) FROM due) AS found,
       (SELECT max(expires_at)::text FROM due) AS last,
       s.number AS sessions_swept,
       w.number AS wraps_expired,
       s.number + w.number AS changed,
       greatest((SELECT count(*) FROM due) - s.number, 0) AS skipped_locked
  FROM (SELECT count(*) AS number FROM ended) AS s, (SELECT count(*) AS number FROM wraps) AS w
"""

DUE = Due("reveal_sessions", "expired_at IS NULL AND expires_at <= %(cutoff)s", "expires_at", indexed=True)

# Of the session that comes next, and cannot be written in one go.
WRAPS = """
SELECT id::text FROM secret_wraps
 WHERE consumed_at IS NULL AND expires_at > now() AND id = ANY ((
       SELECT wrap_ids FROM reveal_sessions
        WHERE expired_at IS NULL AND expires_at >= %(after)s::timestamptz AND expires_at <= %(cutoff)s
        ORDER BY expires_at
       OFFSET %(skip)s
        LIMIT 1)::uuid[])
"""

END_WRAP = """
WITH taken AS MATERIALIZED (
    SELECT id FROM secret_wraps
     WHERE id = %(id)s::uuid AND consumed_at IS NULL AND expires_at > now()
       FOR NO KEY UPDATE SKIP LOCKED
), ended AS (
    UPDATE secret_wraps SET expires_at = now()
     WHERE id = ANY (ARRAY(SELECT id FROM taken)) AND consumed_at IS NULL AND expires_at > now()
 RETURNING 1
)
SELECT count(*) AS wraps_expired, count(*) AS changed FROM ended
"""


class _Sessions(KeysetScan):
    """Ends sessions with their wraps, many at a time; of one that PostgreSQL refuses, whatever wraps it can."""

    _wrap_errors = 0

    def step(self, run: Run, *, over: bool) -> Step:
        """End the next sessions, or the wraps of the one that could not be ended."""
        if not self._around:
            return super().step(run, over=over)
        run = self._until(run)
        counts = self._end_wraps(run)
        self._go_around(run)
        return Step(counts, last=False, resume_at=self.resume_at)

    def _end_wraps(self, run: Run) -> Counter[str]:
        """End them one by one, up to the first that takes too long: there may be many of that kind."""
        counts: Counter[str] = Counter()
        for wrap in run.rows(WRAPS, **self._next(), cutoff=run.cutoff):
            ended = step_aside(run, partial(run.row, END_WRAP, id=wrap["id"]), raises=())
            if not isinstance(ended, Failure):
                counts.update(ended)
                continue
            self._refused(ended)
            counts["wrap_errors"] += 1
            if ended.sqlstate == TOO_SLOW:
                break
        return counts

    def _refused(self, failure: Failure) -> None:
        """Tell of the first wrap; the others are counted, for a run as for each of its retries."""
        self._wrap_errors += 1
        if self._wrap_errors == 1:
            log.warning("a wrap could not be expired", task="reveal-sessions-expired", **failure._asdict())


@sweeper(
    "reveal-sessions-expired",
    needs={"reveal_sessions": ("SELECT", "UPDATE"), "secret_wraps": ("SELECT", "UPDATE")},
    settings=RevealSessionsExpired,
    due=lambda _own: DUE,
    text=EventText(
        Severity.INFO,
        "reveal sessions expired",
        "sweep expired reveal sessions failed",
        "",
        warn_by=("wrap_errors",),
        warning="reveal sessions expired with wrap-expiry errors",
        always=("sessions_swept", "wraps_expired", "wrap_errors"),
    ),
    counts=("sessions_swept", "wraps_expired", "wrap_errors"),
    fails_by="wrap_errors",
    size=("sessions_swept",),
)
def reveal_sessions_expired(_settings: RevealSessionsExpired) -> KeysetScan:
    """End sessions whose time is over, the oldest first."""
    return _Sessions(KeysetSql(None, END, DUE))
