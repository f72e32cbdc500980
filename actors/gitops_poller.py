"""gitops-poller: asks ArgoCD, read-only, whether changes have landed.

A transaction writes the results that are there and claims what is due; between transactions the polls go on. A result
is written only over the row that was claimed: `polls_count` and `last_polled_at` must not have moved, and the row must
still be open. It stamps the row with the time of its claim, so that an observation is polled once a slot; what was
claimed and got no result stays due, for the retry of a run that failed as well.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, LiteralString, TypeVar

import structlog
from pydantic import BeforeValidator

from app.core.config import variable
from app.core.errors import LONGEST_RETRY_AFTER, Failure
from app.core.events import Severity
from app.core.jsonb import fit
from app.core.values import Bool, Cadence, Duration, PositiveInt, parse_bool, parse_int, remark
from app.gitops.model import Endpoint, EndpointHealth, Observation, Result
from app.gitops.settings import GitopsSettings
from app.kms.envelope import Envelope
from app.kms.settings import KmsSettings
from app.sweeping.scans.due import Due
from app.sweeping.scans.refusals import step_aside
from app.sweeping.strategy import Run, Step, Strategy
from app.sweeping.sweeper import EventText, sweeper

log = structlog.get_logger("sweep")

T = TypeVar("T")

#: For how long an ArgoCD is left alone at most.
LONGEST_REST = timedelta(seconds=LONGEST_RETRY_AFTER)
#: What stands for a time-out of 0.
DEFAULT_TIMEOUT = timedelta(seconds=15)


def _on(value: object) -> object:
    if value in ("on", "off"):
        return value == "on"
    try:
        return parse_bool(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("not a switch; accepted: on, off, true, false") from None


#: What the Go worker takes a size of 0 or less for.
_GO_BATCH_SIZE = 10


def _batch_size(value: object) -> object:
    if not isinstance(value, str) or parse_int(value) > 0:
        return parse_int(value) if isinstance(value, str) else value
    remark(f"must be at least 1; taken as {_GO_BATCH_SIZE}, as the Go worker does")
    return _GO_BATCH_SIZE


class GitopsPoller(GitopsSettings, KmsSettings):
    """Whom to ask, how hard, and what to believe."""

    interval: Cadence = variable(
        "SB_SWEEP_GITOPS_POLL_INTERVAL",
        "SB_WORKER_GITOPS_POLL_INTERVAL",
        default="15s",
        meaning="how often each open observation is polled",
    )
    timeout: Duration = variable(
        "SB_WORKER_GITOPS_HTTP_TIMEOUT",
        default="15s",
        meaning="time that one request to ArgoCD may take in all; 0: 15s",
    )
    batch_size: Annotated[int, BeforeValidator(_batch_size)] = variable(
        "SB_WORKER_GITOPS_BATCH_SIZE", default="20", meaning="observations claimed at a time"
    )
    concurrency: PositiveInt = variable(
        "SB_WORKER_GITOPS_CONCURRENCY", default="8", meaning="requests to one ArgoCD at a time"
    )
    freshness: Annotated[bool, BeforeValidator(_on)] = variable(
        "SB_WORKER_GITOPS_FRESHNESS",
        default="on",
        meaning="off: what ArgoCD saw before the observation decides as well, as in the Go worker",
    )
    app_namespace: Bool = variable(
        "SB_WORKER_GITOPS_APP_NAMESPACE",
        default="false",
        meaning="after a 403, ask again with the observation's namespace as the Application's own",
    )

    @property
    def deadline(self) -> float:
        """Seconds that one request may take."""
        return (self.timeout or DEFAULT_TIMEOUT).total_seconds()

    @property
    def warnings(self) -> tuple[str, ...]:
        """That a time-out of 0 does not mean none."""
        text = "SB_WORKER_GITOPS_HTTP_TIMEOUT: 0 means 15s, as in the Go worker; no request may go on for ever"
        return (*super().warnings, *(() if self.timeout else (text,)))

    def problems(self, *, dev: bool) -> Iterable[str]:
        """Return what would keep ArgoCD's tokens closed."""
        return self.key_problems(dev=dev)


# A stamp or a rest that reaches further ahead than any that is written here is from a clock that was ahead, and counts
# for nothing.
OPEN: LiteralString = """
      FROM gitops_observations AS o
      JOIN argocd_endpoints AS e ON e.id = o.argocd_endpoint_id AND e.enabled AND e.deleted_at IS NULL
     WHERE o.polling_state IN ('queued', 'active')
       AND (o.last_polled_at IS NULL OR o.last_polled_at < (SELECT began FROM slot)
            OR o.last_polled_at > now() + %(interval)s)
       AND NOT EXISTS (SELECT FROM secrets_bridge_worker.gitops_rest AS r
                        WHERE r.endpoint_id = o.argocd_endpoint_id
                          AND r.until > now() AND r.until <= now() + %(longest)s)"""

# Due is what was not polled since the slot began; of a run that outlives its time for a slow endpoint's sake, since
# the slot that has come meanwhile. Python has no year beyond 9999, and no time without an end.
CLAIM = f"""
WITH slot AS (
    SELECT CASE WHEN %(late)s THEN greatest(date_bin(%(interval)s, now(), timestamptz 'epoch'), %(slot)s)
                ELSE %(slot)s END AS began
), due AS (
    SELECT o.id, o.argocd_endpoint_id, o.application_name, o.application_namespace, o.polls_count, o.last_polled_at,
           o.created_at, coalesce(o.last_polled_at > now() + %(interval)s, false) AS ahead
{OPEN}
       AND o.id <> ALL (%(claimed)s::uuid[])
       AND o.argocd_endpoint_id <> ALL (%(busy)s::uuid[])
     ORDER BY CASE WHEN o.last_polled_at <= now() + %(interval)s THEN o.last_polled_at END NULLS FIRST, o.created_at
     LIMIT %(limit)s
       FOR NO KEY UPDATE OF o SKIP LOCKED
), begun AS (
    UPDATE gitops_observations AS o SET polling_state = 'active' FROM due WHERE NOT %(look)s AND o.id = due.id
       AND o.polling_state = 'queued'
)
SELECT d.id::text, d.argocd_endpoint_id::text AS endpoint, d.application_name, d.application_namespace, d.polls_count,
       d.ahead, d.last_polled_at::text AS polled_before, greatest(now(), (SELECT began FROM slot)) AS claimed_at,
       least(greatest(d.created_at, timestamptz '1970-01-01Z'), timestamptz '9999-01-01Z') AS created_at,
       (SELECT min(m.project_name) FROM gitops_app_mappings AS m
         WHERE m.argocd_endpoint_id = d.argocd_endpoint_id AND m.application_name = d.application_name
           AND m.deleted_at IS NULL
        HAVING count(DISTINCT m.project_name) = 1) AS project
  FROM due AS d
"""  # noqa: S608 - all its parts are literals

COUNT = f"""
WITH slot AS (SELECT %(slot)s::timestamptz AS began)
SELECT count(*) AS due FROM (SELECT {OPEN} LIMIT %(most)s) AS due
"""  # noqa: S608 - all its parts are literals

# Each of them is due once an interval, from the end of its last poll's on.
BACKLOG = Due(
    "gitops_observations",
    """polling_state IN ('queued', 'active') AND (last_polled_at IS NULL OR last_polled_at <= %(cutoff)s)
       AND argocd_endpoint_id IN (SELECT id FROM argocd_endpoints WHERE enabled AND deleted_at IS NULL)""",
    "coalesce(last_polled_at, created_at)",
    indexed=True,
)

ENDPOINTS = """
SELECT id::text, base_url, token_ciphertext, token_nonce, token_data_key_ciphertext, token_kms_key_id, tls_ca_pem,
       tls_server_name, last_health_error IS NOT NULL AS unhealthy
  FROM argocd_endpoints
 WHERE id = ANY (%(ids)s::uuid[])
"""

# Rows are locked in one order, and before they are written, so that no two transactions wait for each other.
WRITE = """
WITH result AS (
    SELECT * FROM jsonb_to_recordset(%(results)s::jsonb)
        AS r (id uuid, polls integer, before timestamptz, claimed timestamptz, state jsonb, error text, verdict text)
), mine AS MATERIALIZED (
    SELECT o.id FROM gitops_observations AS o JOIN result AS r ON r.id = o.id
     WHERE o.polls_count = r.polls AND o.last_polled_at IS NOT DISTINCT FROM r.before
       AND o.polling_state IN ('queued', 'active')
     ORDER BY o.id
       FOR NO KEY UPDATE OF o
), written AS (
    UPDATE gitops_observations AS o
       SET observed_state = CASE WHEN r.state IS NULL THEN o.observed_state
                                 WHEN jsonb_typeof(o.observed_state) = 'object'
                                 THEN '{"resources": []}'::jsonb || o.observed_state || r.state
                                 ELSE '{"resources": []}'::jsonb || r.state END,
           polls_count = least(o.polls_count, 2147483646) + 1,
           last_polled_at = r.claimed,
           last_error = r.error,
           polling_state = r.verdict,
           terminal_at = CASE WHEN r.verdict = 'active' THEN o.terminal_at ELSE now() END
      FROM result AS r, mine
     WHERE o.id = r.id AND o.id = mine.id
       AND o.polls_count = r.polls AND o.last_polled_at IS NOT DISTINCT FROM r.before
       AND o.polling_state IN ('queued', 'active')
 RETURNING o.id::text, r.verdict, r.error IS NOT NULL AS failed
)
TABLE written
"""

HEALTH = """
WITH health AS (
    SELECT * FROM jsonb_to_recordset(%(health)s::jsonb) AS n (id uuid, error text, rest double precision)
), before AS MATERIALIZED (
    SELECT e.id, e.last_health_error AS error FROM argocd_endpoints AS e JOIN health AS n ON n.id = e.id
     WHERE e.deleted_at IS NULL
     ORDER BY e.id
       FOR NO KEY UPDATE OF e
), written AS (
    UPDATE argocd_endpoints AS e SET last_health_at = now(), last_health_error = n.error
      FROM health AS n, before AS b
     WHERE e.id = n.id AND e.id = b.id
), rests AS (
    INSERT INTO secrets_bridge_worker.gitops_rest AS r (endpoint_id, until)
    SELECT id, now() + rest * interval '1 s' FROM health WHERE rest > 0
        ON CONFLICT (endpoint_id) DO UPDATE
       SET until = least(greatest(r.until, excluded.until), now() + %(longest)s)
)
SELECT count(*) FILTER (WHERE b.error IS NULL AND n.error IS NOT NULL) AS endpoints_unhealthy,
       count(*) FILTER (WHERE b.error IS NOT NULL AND n.error IS NULL) AS endpoints_recovered
  FROM before AS b JOIN health AS n ON n.id = b.id
"""

# Once a run: what will not be asked says why, and rests are forgotten that are over, or longer than any granted here.
TIDY = """
WITH forgotten AS (
    DELETE FROM secrets_bridge_worker.gitops_rest WHERE until < now() OR until > now() + %(longest)s
 RETURNING until > now() AS ahead
), shut AS MATERIALIZED (
    SELECT o.id FROM gitops_observations AS o JOIN argocd_endpoints AS e ON e.id = o.argocd_endpoint_id
     WHERE o.polling_state IN ('queued', 'active') AND (NOT e.enabled OR e.deleted_at IS NOT NULL)
       AND o.last_error IS DISTINCT FROM 'endpoint disabled'
     LIMIT 1000
       FOR NO KEY UPDATE OF o SKIP LOCKED
), written AS (
    UPDATE gitops_observations AS o SET last_error = 'endpoint disabled'
      FROM shut
     WHERE o.id = shut.id AND o.polling_state IN ('queued', 'active')
 RETURNING 1
)
SELECT count(*) AS endpoint_disabled, (SELECT count(*) FROM forgotten WHERE ahead) AS rests_ahead FROM written
"""

#: What a run reports as changed.
DECIDED = ("applied", "observations_failed", "endpoints_unhealthy", "endpoints_recovered")


class Polling(Strategy):
    """Write the results that are there, claim what is due; poll in between."""

    def __init__(self, settings: GitopsPoller) -> None:
        from app.gitops.poller import Poller  # noqa: PLC0415 - an HTTP client is 17 MiB, for a run that polls alone

        self._settings = settings
        self._poller = Poller(
            settings.keys,
            None if settings.kms_backend == "local" else settings.key_context,
            deadline=settings.deadline,
            concurrency=settings.concurrency,
            fresh=settings.freshness,
        )
        self._tidied = False
        #: How many observations the next claim takes: fewer after one that PostgreSQL refused.
        self._size = settings.batch_size
        #: What was claimed and not written: under way, or moved by somebody else. Once a run is enough for these.
        self._claimed: set[str] = set()
        self._ahead = 0

    def step(self, run: Run, *, over: bool) -> Step:
        """Write results and health, and claim more if there is time."""
        poller = self._poller
        counts = Counter[str]()
        if not self._tidied:
            self._tidied = True
            counts.update(self._by_halves(run, ["all of it"], lambda _all: self._tidy(run)))
        counts.update(self._by_halves(run, poller.take_results(), lambda results: self._write(run, results)))
        counts.update(self._by_halves(run, poller.take_health(), lambda health: self._write_health(run, health)))
        if poller.may_claim(over=over):
            counts.update(self._claim(run, over=over))
        changed = sum(counts[name] for name in DECIDED)
        return Step({**counts, "changed": changed}, poller.done, None if poller.pending else 0)

    def wait(self, stopping: Callable[[], bool]) -> None:
        """Poll until there is something to write or to claim."""
        self._poller.wait(stopping)

    def close(self) -> None:
        """End what is under way."""
        self._poller.close()
        if self._ahead:
            log.warning(
                "a clock was ahead: stamps from the future do not count", task="gitops-poller", rows=self._ahead
            )

    def _tidy(self, run: Run) -> dict[str, int]:
        counts = run.row(TIDY, longest=LONGEST_REST)
        self._ahead += counts.pop("rests_ahead")
        return counts

    def _by_halves(
        self, run: Run, items: Sequence[T], work: Callable[[Sequence[T]], Mapping[str, int]]
    ) -> Counter[str]:
        """Do the work and return its counts; by halves when PostgreSQL refuses it, until what it refuses is alone."""
        if not items:
            return Counter()
        counts = step_aside(run, lambda: work(items))
        if not isinstance(counts, Failure):
            return Counter(counts)
        if len(items) == 1:
            log.warning("one result is not written", task="gitops-poller", **counts._asdict())
            return Counter(unwritten=1)
        half = len(items) // 2
        counts = self._by_halves(run, items[:half], work)
        counts.update(self._by_halves(run, items[half:], work))
        return counts

    def _write(self, run: Run, results: Sequence[Result]) -> dict[str, int]:
        written = run.rows(WRITE, results=json.dumps([_row(result) for result in results]))
        self._claimed.difference_update(row["id"] for row in written)
        verdicts = Counter(row["verdict"] for row in written)
        failed = sum(row["failed"] for row in written)
        return {
            "succeeded": len(written) - failed,
            "failed": failed,
            "applied": verdicts["applied"],
            "observations_failed": verdicts["failed"],
            "overtaken": len(results) - len(written),
        }

    def _write_health(self, run: Run, health: Sequence[EndpointHealth]) -> dict[str, int]:
        rows = [{"id": change.endpoint, "error": change.error, "rest": change.rest} for change in health]
        return run.row(HEALTH, health=json.dumps(rows), longest=LONGEST_REST)

    def _claim(self, run: Run, *, over: bool) -> Counter[str]:
        """Claim what is due and have it polled; less when PostgreSQL refuses that, and not what it refuses alone."""
        size = self._size
        due = step_aside(run, lambda: self._due(run, size, over=over))
        if not isinstance(due, Failure):
            self._size = min(2 * size, self._settings.batch_size)
            self._poller.submit(due, size)
            return Counter()
        self._poller.submit([], 0)  # more is due
        self._size = max(1, size // 2)
        if size > 1:
            return Counter()
        log.warning("one observation cannot be claimed", task="gitops-poller", **due._asdict())
        found = self._due(run, size, over=over, look=True)
        if not found:  # somebody else has it by now, and nothing is there to blame: the next run will see
            self._poller.submit([], size)
        return Counter(unwritten=len(found))

    def _due(self, run: Run, limit: int, *, over: bool, look: bool = False) -> list[Observation]:
        """Claim observations, or only look which ones these would be; none of them is met again in this run."""
        own, poller = self._settings, self._poller
        due = run.rows(
            CLAIM,
            interval=own.interval,
            slot=run.slot_start,
            late=over,
            busy=poller.busy,
            claimed=list(self._claimed),
            longest=LONGEST_REST,
            limit=limit,
            look=look,
        )
        unknown = {row["endpoint"] for row in due}.difference(poller.known)
        if unknown and not look:
            poller.add_endpoints(_endpoint(row) for row in run.rows(ENDPOINTS, ids=list(unknown)))
        self._claimed.update(row["id"] for row in due)
        self._ahead += sum(row["ahead"] for row in due)
        return [_observation(row, own) for row in due]


class Counting(Strategy):
    """Counts what a run would poll, and asks no ArgoCD."""

    def __init__(self, settings: GitopsPoller) -> None:
        self._interval = settings.interval

    def step(self, run: Run, *, over: bool) -> Step:
        """Count."""
        del over
        found = run.row(COUNT, interval=self._interval, slot=run.slot_start, longest=LONGEST_REST, most=run.most_rows)
        all_seen = found["due"] != run.most_rows
        return Step(found, last=all_seen, enough=not all_seen)


@sweeper(
    "gitops-poller",
    needs={
        "gitops_observations": ("SELECT", "UPDATE"),
        "argocd_endpoints": ("SELECT", "UPDATE"),
        "gitops_app_mappings": ("SELECT",),
    },
    settings=GitopsPoller,
    due=lambda own: BACKLOG.older(own.interval),
    text=EventText(
        Severity.INFO,
        "gitops observations polled",
        "claim gitops observations failed",
        "",
        always=("succeeded", "failed"),  # what the Go worker calls so: polls, and not what they decided
        warn_by=("observations_failed", "endpoints_unhealthy"),
    ),
    counts=(
        "succeeded",
        "failed",
        "applied",
        "observations_failed",
        "overtaken",
        "unwritten",
        "endpoints_unhealthy",
        "endpoints_recovered",
        "endpoint_disabled",
    ),
    dry_run=Counting,
    size=("succeeded", "failed"),
)
def gitops_poller(settings: GitopsPoller) -> Polling:
    """Poll what is due."""
    return Polling(settings)


def _endpoint(row: Mapping[str, Any]) -> Endpoint:
    sealed = ("token_ciphertext", "token_nonce", "token_data_key_ciphertext", "token_kms_key_id")
    plain = ("id", "base_url", "tls_ca_pem", "tls_server_name", "unhealthy")
    return Endpoint(**{name: row[name] for name in plain}, envelope=Envelope(**{name: row[name] for name in sealed}))


def _observation(row: Mapping[str, Any], settings: GitopsPoller) -> Observation:
    known = {"project": row["project"]} if row["project"] else {}
    if settings.app_namespace and row["application_namespace"]:
        known["appNamespace"] = row["application_namespace"]
    return Observation(
        row["id"],
        row["endpoint"],
        row["application_name"],
        known,
        row["polls_count"],
        row["polled_before"],
        row["claimed_at"],
        row["created_at"],
    )


def _row(result: Result) -> dict[str, Any]:
    observation = result.observation
    return {
        "id": observation.id,
        "polls": observation.polls_count,
        "before": observation.polled_before,
        "claimed": observation.claimed_at.isoformat(),
        "state": result.state,
        "error": None if result.error is None else fit(result.error),
        "verdict": result.verdict,
    }
