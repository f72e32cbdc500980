"""discover-scheduler: enqueues discover jobs for provider connections that are due, or for the environment's targets.

Connections are the api's own list: each has an interval, down to a minute, and a state. One that is running is not due,
whatever became of its job: the api's hook, jobs-recovery or discover-stuck ends it. Only while no connection is enabled
are the targets of the environment used: each gets one job for each of their own, longer slots, unless it has one open.

One statement looks for the open jobs of many targets, and enqueues what is missing; a target that fails is singled out
and counted, and the others go on.
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, LiteralString

import structlog
from pydantic import BeforeValidator, PrivateAttr

from app.core import metrics
from app.core.config import variable
from app.core.errors import Failure
from app.core.events import Severity
from app.core.values import Cadence
from app.discovery.connections import OPEN, connection_key
from app.discovery.targets import Target, Targets, parse
from app.sweeping.items import MOST_ITEMS, Items
from app.sweeping.scans.due import Due
from app.sweeping.scans.refusals import step_aside
from app.sweeping.schedule import Slot, moment, slot_at
from app.sweeping.strategy import Passing, Run, Step, Took
from app.sweeping.sweeper import EventText, SweeperSettings, sweeper

log = structlog.get_logger("sweep")

#: Where connections are: a column that came with their discovery.
CONNECTIONS = "provider_connections.discover_interval_seconds"
#: How often connections are looked at: half of the shortest interval that one may have.
LOOK_EVERY = timedelta(seconds=30)
#: What becomes of the environment's targets; operators look for these texts.
IGNORED = (
    "SB_DISCOVER_TARGETS_JSON is ignored because DB-backed discover targets exist; it is deprecated, unset it once "
    "each of its targets is a provider connection"
)
FALLBACK = (
    "SB_DISCOVER_TARGETS_JSON fallback is in use; it is deprecated, make a provider connection of each of its targets"
)


def _targets(value: object) -> object:
    return parse(value) if isinstance(value, str) else value


class DiscoverScheduler(SweeperSettings):
    """What is discovered where no provider connection says so, and when."""

    interval: Cadence = variable(
        "SB_SWEEP_DISCOVER_INTERVAL",
        "SB_WORKER_DISCOVER_INTERVAL",
        default="5m",
        meaning="how often discover jobs are enqueued for SB_DISCOVER_TARGETS_JSON; provider connections have "
        "intervals of their own, and are looked at every 30s, or as often as this if that is shorter",
    )
    targets: Annotated[Targets | None, BeforeValidator(_targets)] = variable(
        "SB_DISCOVER_TARGETS_JSON",
        default=None,
        secret=True,
        meaning="what to discover while no provider connection is enabled: a JSON list of {agent_id, provider, config, "
        "scope}; unset: nothing",
    )
    #: In which of the targets' slots something was said of them last.
    _told: dict[str, Slot] = PrivateAttr(default_factory=dict)

    @property
    def tick(self) -> timedelta:
        """How often connections are looked at."""
        return min(LOOK_EVERY, self.interval)

    @property
    def listed(self) -> tuple[Target, ...]:
        """The environment's targets."""
        return self.targets.all if self.targets else ()

    @property
    def rests_without(self) -> str:
        """The connections, unless there are targets."""
        return "" if self.listed else CONNECTIONS

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the targets, and what every sweeper warns of."""
        return (*super().warnings, *(self.targets.warnings if self.targets else ()))

    def tell(self, text: str, slot: Slot, target: str = "") -> bool:
        """Log what becomes of the targets, or of one, once in each of their slots; return whether it was this time."""
        if not self.listed or self._told.get(target + text) == slot:
            return False
        self._told[target + text] = slot
        log.warning(text, task="discover-scheduler", **({"target": target} if target else {}))
        return True


LOOK = """
SELECT count(*) > 0 AS present, coalesce(bool_or(has_column_privilege(attrelid, attnum, 'SELECT')), false) AS readable
  FROM pg_attribute
 WHERE attrelid = to_regclass('provider_connections') AND attname = 'discover_interval_seconds' AND NOT attisdropped
"""

ENABLED = """
SELECT EXISTS (SELECT FROM provider_connections
                WHERE discover_enabled = true AND status = 'active' AND cluster_name IS NOT NULL) AS enabled
"""

IS_DUE: LiteralString = """
       discover_enabled = true AND status = 'active' AND cluster_name IS NOT NULL
       AND last_discover_status IS DISTINCT FROM 'running'
       AND (last_discover_at IS NULL OR last_discover_at <= now() - discover_interval_seconds * interval '1 s')"""
# Who was never discovered comes first.
DUE = f"""
SELECT id::text FROM provider_connections
 WHERE {IS_DUE}
 ORDER BY last_discover_at NULLS FIRST
"""  # noqa: S608 - all its parts are literals

# What an admin has just added was never discovered: since when it waits, its row does not say.
BACKLOG = Due("provider_connections", IS_DUE, "last_discover_at + discover_interval_seconds * interval '1 s'")

# A row runs and has a job, or neither. An open job of the same connection is its discovery, whoever enqueued it.
START = f"""
WITH due AS MATERIALIZED (
    SELECT id FROM provider_connections
     WHERE id = ANY (%(ids)s::uuid[]) AND {IS_DUE}
       FOR NO KEY UPDATE SKIP LOCKED
), open AS MATERIALIZED (
{OPEN}
), started AS (
    UPDATE provider_connections AS c
       SET last_discover_status = 'running', last_discover_started_at = now(), last_discover_error = NULL
     WHERE c.id = ANY (ARRAY(SELECT id FROM due)) AND c.last_discover_status IS DISTINCT FROM 'running'
       AND {connection_key("c.id")} NOT IN (SELECT id FROM open)
 RETURNING c.id, c.type, c.scope, c.cluster_name
), enqueued AS (
    INSERT INTO sync_jobs (job_type, status, correlation_id, agent_scope, payload)
    SELECT 'discover', 'queued', gen_random_uuid(),
           jsonb_build_object('cluster', cluster_name, 'cluster_name', cluster_name),
           jsonb_build_object('connection_id', id, 'target_provider_type', type, 'target_provider_config', scope,
                              'cluster_name', cluster_name)
      FROM started
 RETURNING 1
)
SELECT (SELECT count(*) FROM enqueued) AS changed,
       (SELECT count(*) FROM due) - (SELECT count(*) FROM started) AS already_open,
       ARRAY(SELECT id::text FROM started) AS started
"""  # noqa: S608 - all its parts are literals

# Without `last_discover_at`: nothing was discovered, and the retry must find it due.
REFUSE = """
UPDATE provider_connections
   SET last_discover_status = 'failure', last_discover_finished_at = now(), last_discover_error = %(error)s
 WHERE id = %(id)s::uuid AND last_discover_status IS DISTINCT FROM 'running'
"""

AGENTS = """
SELECT id::text, coalesce(cluster_name, scope ->> 'cluster', scope ->> 'cluster_name', '') AS cluster
  FROM agents
 WHERE id = ANY (%(ids)s::uuid[]) AND status <> 'revoked'
"""

# All jobs are read once, whatever the number of targets. A claimed job is open even when its claim ran out:
# jobs-recovery or another agent has yet to take it up. A job without agent_id is for any agent of the cluster, so for
# this one too.
ENQUEUE = """
WITH target AS (
    SELECT * FROM jsonb_to_recordset(%(targets)s::jsonb)
        AS t (agent_scope jsonb, payload jsonb, provider text, config jsonb, cluster text, scope text, raw_scope jsonb,
              agent text)
), open AS MATERIALIZED (
    SELECT payload, agent_scope FROM sync_jobs
     WHERE job_type = 'discover' AND (status = 'queued' OR status = 'claimed' OR created_at >= %(slot)s)
), enqueued AS (
    INSERT INTO sync_jobs (job_type, status, correlation_id, agent_scope, payload)
    SELECT 'discover', 'queued', gen_random_uuid(), t.agent_scope, t.payload
      FROM target AS t
     WHERE NOT EXISTS (
           SELECT FROM open AS o
            WHERE o.payload ->> 'target_provider_type' = t.provider
              AND coalesce(nullif(o.payload -> 'target_provider_config', 'null'), '{}') = t.config
              AND coalesce(o.payload ->> 'cluster_name', '') = t.cluster
              AND coalesce(o.payload ->> 'scope', '') = t.scope
              AND coalesce(o.payload -> 'target_scope', 'null') = coalesce(t.raw_scope, 'null')
              AND coalesce(o.agent_scope ->> 'agent_id', t.agent) = t.agent)
 RETURNING 1
)
SELECT count(*) AS changed FROM enqueued
"""


class _Connections(Items[str]):
    """Starts connections, each under its lock of Redis, which the api takes as well when an admin wants one discovered.

    The lock of what was started is left to run out, and so is one whose transaction may or may not have been committed;
    the others are given back. So no more are taken than the next step may start.
    """

    def __init__(self, due: Sequence[str], run: Run) -> None:
        self._locks = run.targets
        self._first = run.position if run.position < len(due) else 0
        self._total = len(due)
        #: What has yet to be locked, and what of the rest others had not locked.
        self._waiting = deque([*due[self._first :], *due[: self._first]])
        self._chosen: list[str] = []
        #: How many connections others have locked, until that is counted.
        self._held = 0
        self._unused: set[str] = set()
        self._started: Sequence[str] = ()
        self._in_doubt: Sequence[str] = ()
        super().__init__(self._chosen, self._start_discoveries, lambda _id: {"task": "discover-scheduler"})

    def wait(self, stopping: Callable[[], bool]) -> None:
        """Lock what the next step is to start, if that is not done."""
        wanted = len(self._chosen) + MOST_ITEMS if self._done == len(self._chosen) else 0
        while self._waiting and len(self._chosen) < wanted and not stopping():
            connection = self._waiting.popleft()
            if self._locks.take(connection):
                self._unused.add(connection)
                self._chosen.append(connection)
            else:
                self._held += 1

    def step(self, run: Run, *, over: bool) -> Step:
        """Start those that are locked."""
        step = super().step(replace(run, position=0), over=over)
        counts = Counter(step.counts)
        counts["skipped_locked"] += self._held
        self._held = 0
        counts = +counts
        return Step(counts, step.last and not self._waiting, self.resume_at)

    @property
    def resume_at(self) -> int:
        """The connection, of those that were due, that the next run goes on with."""
        left = len(self._waiting) + len(self._chosen) - self._done
        return (self._first + self._total - left) % self._total

    def _start_discoveries(self, run: Run, ids: Sequence[str]) -> Mapping[str, int]:
        self._in_doubt, self._started = ids, ()
        row = run.row(START, ids=list(ids))
        self._started = row.pop("started")
        counts = {**row, "skipped_locked": len(ids) - row["changed"] - row["already_open"]}
        return {name: number for name, number in counts.items() if number}

    def refused(self, run: Run, item: str, failure: Failure) -> None:
        """Have the connection's row say so, as far as PostgreSQL takes that."""
        error = " ".join(filter(None, ("enqueue failed:", *failure)))
        step_aside(run, lambda: run.cursor.execute(REFUSE, {"id": item, "error": error}))

    def committed(self, took: Took) -> None:
        """Note which locks are to be left."""
        del took
        self._unused.difference_update(self._started)
        self._in_doubt, self._started = (), ()

    def close(self) -> None:
        """Give back the locks of what was not started."""
        self._locks.release(self._unused.difference(self._in_doubt))


class Discovery(Passing):
    """Finds out what there is to discover, and goes through that."""

    def __init__(self, settings: DiscoverScheduler) -> None:
        super().__init__(_nothing())
        self._settings = settings
        self._begun = False

    def step(self, run: Run, *, over: bool) -> Step:
        """Find out what is due, or enqueue the next jobs."""
        if not self._begun:
            self._begun = True
            self.strategy = self._find(run)
            if isinstance(self.strategy, _Connections):
                return Step({}, last=False, resume_at=None)
        return super().step(run, over=over)

    def _find(self, run: Run) -> Items[Any]:
        """Return the work of this run."""
        own, slot = self._settings, slot_at(run.slot, self._settings.interval)
        found = run.row(LOOK)
        if found["present"] and (found["readable"] or not own.listed):
            if run.row(ENABLED)["enabled"]:
                own.tell(IGNORED, slot)
                due = [row["id"] for row in run.rows(DUE)]
                return _Connections(due, run) if due else _nothing()
            own.tell(FALLBACK, slot)
        return Items(own.listed, partial(_enqueue, own, slot), _names)


def _nothing() -> Items[Any]:
    return Items((), lambda _run, _items: {}, _names)


@sweeper(
    "discover-scheduler",
    needs={"sync_jobs": ("SELECT", "INSERT"), "agents": ("SELECT",)},
    uses={CONNECTIONS: ("SELECT", "UPDATE")},
    settings=DiscoverScheduler,
    due=lambda _own: BACKLOG,
    text=EventText(Severity.INFO, "discover jobs enqueued", "some discover targets failed to enqueue", "enqueued"),
    counts=("already_open", "unknown_agent", "failed"),
    fails_by="failed",
)
def discover_scheduler(settings: DiscoverScheduler) -> Discovery:
    """Enqueue one job for each connection that is due, or for each target."""
    return Discovery(settings)


def _names(target: Target) -> Mapping[str, str]:
    return {"task": "discover-scheduler", "target": target.name}


def _enqueue(own: DiscoverScheduler, slot: Slot, run: Run, targets: Sequence[Target]) -> Mapping[str, int]:
    ids = [target.agent_id for target in targets if target.agent_id]
    clusters = {row["id"]: row["cluster"] for row in run.rows(AGENTS, ids=ids)} if ids else {}
    known = [target for target in targets if not target.agent_id or target.agent_id in clusters]
    rows = [_row(target, target.cluster or clusters.get(target.agent_id, "")) for target in known]
    changed = run.row(ENQUEUE, slot=moment(slot), targets=json.dumps(rows))["changed"]
    for target in targets:
        if target.agent_id and target.agent_id not in clusters:
            told = own.tell("discover target skipped, its agent is unknown or revoked", slot, target.name)
            metrics.TARGETS_SKIPPED.labels("discover-scheduler").inc(told)
    counts = {"already_open": len(known) - changed, "unknown_agent": len(targets) - len(known)}
    return {"changed": changed, **{name: number for name, number in counts.items() if number}}


def _row(target: Target, cluster: str) -> dict[str, object]:
    return {
        "agent_scope": target.agent_scope(cluster),
        "payload": target.payload(cluster),
        "provider": target.provider,
        "config": target.config,
        "cluster": cluster,
        "scope": target.scope,
        "raw_scope": target.raw_scope,
        "agent": target.agent_id,
    }
