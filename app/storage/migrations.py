"""Our own schema in the control plane's database: created once, upgraded in order, never the api's tables."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, LiteralString

import psycopg
from psycopg import Connection
from psycopg.rows import scalar_row

from app.core.errors import BootError, SchemaError, describe
from app.storage.connection import BoundedConnection

#: How long an upgrade may take: an index of a large outbox is built by one statement.
UPGRADE_WITHIN = timedelta(minutes=10)
#: Whoever reads a table that an upgrade waits for waits behind it: so it waits for a moment only, but a few times.
TRIES, PAUSE_SECONDS = 30, 1.0
# One entry a version; entries are never edited once released. The unique index sweep_run_once makes the database itself
# guarantee that one sweeper has at most one run for a slot that is under way or done.
_VERSIONS: tuple[LiteralString, ...] = (
    """
CREATE TABLE secrets_bridge_worker.sweep_state (
    name          text PRIMARY KEY,
    last_slot     timestamptz NOT NULL,
    previous_slot timestamptz NOT NULL,
    token         bigint NOT NULL,
    position      bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE secrets_bridge_worker.sweep_state IS
    'one row a sweeper: the newest claimed slot, and the token that fences older runs off';

CREATE TABLE secrets_bridge_worker.sweep_run (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL,
    slot         timestamptz NOT NULL,
    covered      bigint NOT NULL DEFAULT 0,
    token        bigint,
    worker       text NOT NULL,
    started_at   timestamptz NOT NULL,
    finished_at  timestamptz,
    outcome      text NOT NULL CHECK (outcome IN ('running', 'success', 'failure', 'interrupted')),
    cutoff       timestamptz,
    changed      bigint NOT NULL DEFAULT 0,
    batches      bigint NOT NULL DEFAULT 0,
    counts       jsonb NOT NULL DEFAULT '{}',
    handed_over  boolean NOT NULL DEFAULT false,
    error_class  text,
    sqlstate     text
);
COMMENT ON TABLE secrets_bridge_worker.sweep_run IS
    'the ledger: one row a run; counts and error classes only, nothing of the rows that were swept';
CREATE UNIQUE INDEX sweep_run_once ON secrets_bridge_worker.sweep_run (name, slot) WHERE outcome <> 'failure';
CREATE INDEX sweep_run_running ON secrets_bridge_worker.sweep_run (name) WHERE outcome = 'running';
CREATE INDEX sweep_run_age ON secrets_bridge_worker.sweep_run (name, started_at);
""",
    """
CREATE TABLE secrets_bridge_worker.notification_event (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind       text NOT NULL,
    component  text NOT NULL,
    severity   text NOT NULL CHECK (severity IN ('info', 'warn', 'error')),
    title      text NOT NULL,
    detail     text NOT NULL,
    metadata   json NOT NULL,
    tallies    json NOT NULL DEFAULT '[]'
);
COMMENT ON TABLE secrets_bridge_worker.notification_event IS
    'the outbox: what people are told, in public words and whole numbers';
CREATE INDEX notification_event_age ON secrets_bridge_worker.notification_event (created_at);

CREATE TABLE secrets_bridge_worker.notification_delivery (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id    uuid NOT NULL REFERENCES secrets_bridge_worker.notification_event ON DELETE CASCADE,
    target      text NOT NULL,
    state       text NOT NULL CHECK (state IN ('pending', 'sending', 'delivered', 'digested', 'suppressed', 'dead')),
    reason      text NOT NULL DEFAULT '',
    code        text NOT NULL DEFAULT '',
    attempts    integer NOT NULL DEFAULT 0,
    queued_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    nudged_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease_until timestamptz,
    finished_at timestamptz,
    digest      bigint REFERENCES secrets_bridge_worker.notification_delivery ON DELETE SET NULL,
    CHECK ((state IN ('pending', 'sending')) = (finished_at IS NULL)),
    CHECK ((state = 'sending') = (lease_until IS NOT NULL))
);
COMMENT ON TABLE secrets_bridge_worker.notification_delivery IS
    'one row an event and receiver: where it stands, and how the last attempt ended, as a word of a closed set';
CREATE UNIQUE INDEX notification_delivery_once ON secrets_bridge_worker.notification_delivery (event_id, target);
CREATE INDEX notification_delivery_open ON secrets_bridge_worker.notification_delivery (target, id)
    WHERE state IN ('pending', 'sending');
CREATE INDEX notification_delivery_dead ON secrets_bridge_worker.notification_delivery (target, id)
    WHERE state = 'dead';
CREATE INDEX notification_delivery_digest ON secrets_bridge_worker.notification_delivery (digest)
    WHERE digest IS NOT NULL;

CREATE TABLE secrets_bridge_worker.notification_target (
    name        text PRIMARY KEY,
    failures    integer NOT NULL DEFAULT 0,
    trips       integer NOT NULL DEFAULT 0,
    rests_until timestamptz,
    probe_until timestamptz,
    catch_up    boolean NOT NULL DEFAULT false,
    paced_until timestamptz NOT NULL DEFAULT 'epoch',
    off_fingerprint text,
    off_reason  text NOT NULL DEFAULT '',
    off_at      timestamptz
);
COMMENT ON TABLE secrets_bridge_worker.notification_target IS
    'one row a receiver: its breaker, its pace, and whether it is switched off';

CREATE TABLE secrets_bridge_worker.notification_hold (
    target text NOT NULL,
    key    text NOT NULL,
    until  timestamptz NOT NULL,
    PRIMARY KEY (target, key)
);
COMMENT ON TABLE secrets_bridge_worker.notification_hold IS 'until when equal events are held for one receiver';
""",
    """
CREATE TABLE secrets_bridge_worker.gitops_rest (
    endpoint_id uuid PRIMARY KEY,
    until       timestamptz NOT NULL
);
COMMENT ON TABLE secrets_bridge_worker.gitops_rest IS 'until when an ArgoCD has asked to be left alone';
""",
    """
ALTER TABLE secrets_bridge_worker.sweep_state
    ADD COLUMN failures    bigint NOT NULL DEFAULT 0,
    ADD COLUMN rows_failed bigint NOT NULL DEFAULT 0,
    ADD COLUMN batch_rows  integer;
COMMENT ON COLUMN secrets_bridge_worker.sweep_state.failures IS
    'failed attempts since the last success; the first one was reported in the transaction that counted it';
COMMENT ON COLUMN secrets_bridge_worker.sweep_state.rows_failed IS 'rows that the last run could not sweep';
COMMENT ON COLUMN secrets_bridge_worker.sweep_state.batch_rows IS 'rows a batch, where the usual number is too slow';
DROP INDEX secrets_bridge_worker.sweep_run_once;
CREATE UNIQUE INDEX sweep_run_once ON secrets_bridge_worker.sweep_run (name, slot)
    WHERE outcome IN ('running', 'success');
""",
    """
ALTER TABLE secrets_bridge_worker.notification_target ADD COLUMN off_until timestamptz;
CREATE INDEX notification_delivery_age ON secrets_bridge_worker.notification_delivery (queued_at)
    WHERE state IN ('pending', 'sending');
CREATE INDEX notification_event_order ON secrets_bridge_worker.notification_event (created_at, id);
DROP INDEX secrets_bridge_worker.notification_event_age;
""",
    """
ALTER TABLE secrets_bridge_worker.sweep_state ADD COLUMN pass_rows_failed bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN secrets_bridge_worker.sweep_state.rows_failed IS
    'rows that could not be swept in the last pass through the table';
COMMENT ON COLUMN secrets_bridge_worker.sweep_state.pass_rows_failed IS
    'the same of the pass that several runs share, so far';
""",
    """
CREATE TABLE secrets_bridge_worker.process (
    id          text PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('worker', 'notifier', 'scheduler')),
    queues      text[] NOT NULL DEFAULT '{}',
    deployment  text NOT NULL,
    host        text NOT NULL,
    pid         integer NOT NULL,
    version     text NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at    timestamptz,
    draining    boolean NOT NULL DEFAULT false,
    clock_ahead interval NOT NULL,
    cadences    jsonb NOT NULL,
    off         jsonb NOT NULL,
    ticked_at   timestamptz
);
COMMENT ON TABLE secrets_bridge_worker.process IS
    'one row a process: signs of life, and what it is set to; names of sweepers and variables, no values of settings';
CREATE INDEX process_age ON secrets_bridge_worker.process (seen_at);

CREATE TABLE secrets_bridge_worker.sweeper_pause (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,
    began_at   timestamptz NOT NULL DEFAULT now(),
    until      timestamptz NOT NULL,
    paused_by  text NOT NULL,
    reason     text NOT NULL,
    resumed_at timestamptz,
    resumed_by text
);
COMMENT ON TABLE secrets_bridge_worker.sweeper_pause IS
    'when sweepers were not to run, by whose order and why; a pause ends by itself';
CREATE INDEX sweeper_pause_open ON secrets_bridge_worker.sweeper_pause (name, until) WHERE resumed_at IS NULL;

CREATE TABLE secrets_bridge_worker.sweep_obstacle (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name     text NOT NULL,
    kind     text NOT NULL,
    began_at timestamptz NOT NULL,
    seen_at  timestamptz NOT NULL
);
COMMENT ON TABLE secrets_bridge_worker.sweep_obstacle IS
    'what was seen to keep an overdue sweeper from its runs, as a word of a closed set, and how long it lasted';
CREATE INDEX sweep_obstacle_recent ON secrets_bridge_worker.sweep_obstacle (name, seen_at);

ALTER TABLE secrets_bridge_worker.sweep_run ADD COLUMN requested_by text;
COMMENT ON COLUMN secrets_bridge_worker.sweep_run.requested_by IS
    'who asked for a run by hand, which has no slot of the cadence but the moment it began; NULL for a tick';

ALTER TABLE secrets_bridge_worker.sweep_state
    ADD COLUMN failing_since  timestamptz,
    ADD COLUMN reported_at    timestamptz,
    ADD COLUMN braked_at      timestamptz,
    ADD COLUMN braked_for     text,
    ADD COLUMN braked_rows    bigint,
    ADD COLUMN approved_at    timestamptz,
    ADD COLUMN approved_by    text,
    ADD COLUMN server         text;
COMMENT ON COLUMN secrets_bridge_worker.sweep_state.reported_at IS
    'when people were last told that it fails; NULL while it has not been told in this streak';
COMMENT ON COLUMN secrets_bridge_worker.sweep_state.braked_for IS
    'why a run stopped before it changed anything, as a word of a closed set; NULL while nothing holds it';
COMMENT ON COLUMN secrets_bridge_worker.sweep_state.server IS
    'system identifier and timeline of the PostgreSQL that it last ran on; a restored backup has others';

ALTER TABLE secrets_bridge_worker.notification_target
    ADD COLUMN muted_at     timestamptz,
    ADD COLUMN muted_until  timestamptz,
    ADD COLUMN muted_by     text,
    ADD COLUMN muted_reason text;
COMMENT ON COLUMN secrets_bridge_worker.notification_target.muted_until IS
    'until when nothing is sent; stays when it is over: from then on the age of what waited counts';
ALTER TABLE secrets_bridge_worker.notification_delivery ADD COLUMN replays integer NOT NULL DEFAULT 0;
COMMENT ON COLUMN secrets_bridge_worker.notification_delivery.replays IS 'how often it was replayed by hand';

CREATE TABLE secrets_bridge_worker.heartbeat (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    run_at   timestamptz NOT NULL
);
COMMENT ON TABLE secrets_bridge_worker.heartbeat IS
    'when the newest good run ended that the dead man''s switch outside was told of';
""",
)
VERSION = len(_VERSIONS)

_BOOTSTRAP = """
CREATE SCHEMA IF NOT EXISTS secrets_bridge_worker;
CREATE TABLE IF NOT EXISTS secrets_bridge_worker.schema_version (
    version    integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);
"""
_FIND = "SELECT to_regclass('secrets_bridge_worker.schema_version') IS NOT NULL"
_VERSION = "SELECT coalesce(max(version), 0) FROM secrets_bridge_worker.schema_version"
_RECORD = "INSERT INTO secrets_bridge_worker.schema_version (version) VALUES (%s)"
# Any fixed number that nobody else locks; the api's migrations derive theirs from another name.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('secrets_bridge_worker.schema_version', 0))"


def installed(connection: Connection[Any]) -> int:
    """Return the version of our schema in this database; 0 when there is none. Needs USAGE on the schema."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        if not cursor.execute(_FIND).fetchone():
            return 0
        return cursor.execute(_VERSION).fetchone() or 0


def migrate(connection: Connection[Any]) -> int:
    """Create or upgrade our schema. Return the version now installed, which may be one of a newer release.

    Idempotent, and safe to be called by any number of processes at once: an advisory lock makes them wait for each
    other. Raises SchemaError with the SQL to run when this role may not do it, BootError when PostgreSQL refuses it.
    """
    if (version := _installed_or_fail(connection)) >= VERSION:
        return version
    if isinstance(connection, BoundedConnection):
        connection.answer_within = UPGRADE_WITHIN.total_seconds()
    try:
        for _ in range(TRIES - 1):
            try:
                return _upgrade(connection)
            except psycopg.errors.LockNotAvailable:
                time.sleep(PAUSE_SECONDS)
        return _upgrade(connection)
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaError(
            f"the schema secrets_bridge_worker is at version {version}, needed is {VERSION}, and this role may not "
            "create it; run the SQL below as a role that may, or run `sb-worker migrate` as one",
            script(version),
        ) from error
    except psycopg.Error as error:
        failure = describe(error)
        raise BootError(
            f"the schema secrets_bridge_worker is at version {version} and cannot be brought to {VERSION}: "
            f"{failure.error} {failure.sqlstate}; LockNotAvailable means that another session holds one of its tables"
        ) from None


def _upgrade(connection: Connection[Any]) -> int:
    with connection.transaction():
        connection.execute(_LOCK)
        connection.execute("SET LOCAL lock_timeout = '1s'")
        connection.execute(_BOOTSTRAP)
        for number in range(installed(connection) + 1, VERSION + 1):
            connection.execute(_VERSIONS[number - 1])
            connection.execute(_RECORD, [number])
    return VERSION


def script(version: int = 0) -> str:
    """Return the SQL that brings our schema from `version` to the newest, for a role that may run it."""
    steps = [_BOOTSTRAP]
    for number in range(version + 1, VERSION + 1):
        record = f"INSERT INTO secrets_bridge_worker.schema_version VALUES ({number});\n"  # noqa: S608 - our number
        steps += [_VERSIONS[number - 1], record]
    return "BEGIN;\n" + "".join(steps) + _GRANTS + "COMMIT;\n"


_GRANTS = """
-- replace secrets_bridge_worker_role by the role that the worker connects as
GRANT USAGE ON SCHEMA secrets_bridge_worker TO secrets_bridge_worker_role;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA secrets_bridge_worker TO secrets_bridge_worker_role;
"""


def _installed_or_fail(connection: Connection[Any]) -> int:
    try:
        return installed(connection)
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaError(
            "this role may not use the schema secrets_bridge_worker; run the SQL below as its owner", _GRANTS
        ) from error
