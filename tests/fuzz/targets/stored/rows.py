"""Our own rows, on a real PostgreSQL: whatever one of them holds, whoever reads them shows all the others as before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import psycopg
from hypothesis import strategies as st

from app.storage import migrations
from tests.fuzz.row_readers import GOOD, ODD, Readers
from tests.fuzz.target import Holds, Servers, Target
from tests.fuzz.texts import environment

SCHEMA = "secrets_bridge_worker"
_COLUMNS = """
SELECT table_name, column_name, data_type FROM information_schema.columns
 WHERE table_schema = 'secrets_bridge_worker' AND table_name <> 'schema_version' AND is_identity = 'NO'
 ORDER BY table_name, ordinal_position
"""
#: What stands in a fresh database, each row good. Those of the odd sweeper are changed.
_BASE = f"""
TRUNCATE {SCHEMA}.sweep_state, {SCHEMA}.sweep_run, {SCHEMA}.process, {SCHEMA}.sweeper_pause, {SCHEMA}.sweep_obstacle,
         {SCHEMA}.notification_event, {SCHEMA}.notification_delivery, {SCHEMA}.notification_target,
         {SCHEMA}.notification_hold, {SCHEMA}.gitops_rest, {SCHEMA}.heartbeat RESTART IDENTITY CASCADE;
INSERT INTO {SCHEMA}.sweep_state (name, last_slot, previous_slot, token)
SELECT name, date_bin('1 min', now(), 'epoch') - interval '1 h', 'epoch', 1
  FROM unnest(ARRAY['{ODD}', '{GOOD}']) AS name;
INSERT INTO {SCHEMA}.sweep_run (name, slot, token, worker, started_at, finished_at, outcome, changed, batches, counts)
SELECT name, slot, 1, 'host:1', slot, slot + interval '1 s', outcome, 3, 1, '{{"deleted": 3}}'
  FROM (VALUES (date_bin('1 min', now(), 'epoch') - interval '1 h', 'success'),
               (date_bin('1 min', now(), 'epoch') - interval '50 min', 'running')) AS runs (slot, outcome),
       unnest(ARRAY['{ODD}', '{GOOD}']) AS name WHERE name = '{ODD}' OR outcome = 'success' ORDER BY slot;
INSERT INTO {SCHEMA}.process (id, kind, queues, deployment, host, pid, version, started_at, clock_ahead, cadences, off,
       ticked_at)
SELECT kind || which, kind, queues::text[], 'test', which, 1, '1', now() - interval '2 h', '0',
       '{{"{ODD}": 60, "{GOOD}": 60}}', '{{}}', now()
  FROM (VALUES ('worker', '{{sweeps}}'), ('notifier', '{{sinks}}'), ('scheduler', '{{}}')) AS kinds (kind, queues),
       unnest(ARRAY['odd', 'good']) AS which;
INSERT INTO {SCHEMA}.sweeper_pause (name, began_at, until, paused_by, reason, resumed_at)
VALUES ('{ODD}', now() - interval '1 h', now() - interval '30 min', 'anna', 'x', now() - interval '40 min');
INSERT INTO {SCHEMA}.sweep_obstacle (name, kind, began_at, seen_at)
VALUES ('{ODD}', 'no_ticks', now() - interval '1 h', now());
INSERT INTO {SCHEMA}.notification_target (name) VALUES ('webhook'), ('teams');
INSERT INTO {SCHEMA}.notification_hold VALUES ('webhook', 'x', now() + interval '1 min');
INSERT INTO {SCHEMA}.notification_event (id, kind, component, severity, title, detail, metadata)
VALUES ('00000000-0000-0000-0000-00000000000d', 'swept', '{ODD}', 'info', 'x', '', '{{"deleted": 1}}'),
       ('00000000-0000-0000-0000-00000000000a', 'swept', '{GOOD}', 'info', 'x', '', '{{"deleted": 1}}');
INSERT INTO {SCHEMA}.notification_delivery (event_id, target, state)
SELECT id, target, 'pending' FROM {SCHEMA}.notification_event, unnest(ARRAY['webhook', 'teams']) AS target;
INSERT INTO {SCHEMA}.heartbeat (run_at) VALUES (now());
"""
#: Which row of a table is the odd one.
_WHICH = {
    "sweep_state": f"name = '{ODD}'",
    "sweep_run": f"name = '{ODD}'",
    "process": "host = 'odd'",
    "notification_event": f"component = '{ODD}'",
    "notification_target": "name = 'webhook'",
    "notification_delivery": "target = 'webhook'",
}
_TIMES = (
    *("'infinity'", "'-infinity'", "'0044-03-15 BC'", "'0001-01-01 00:00+00'", "'9999-12-31 23:59:59.999999+00'"),
    *("'12026-01-01'", "'epoch'"),
)
_JSON = (
    *("'null'", "'[]'", "'{}'", "'1'", "'\"x\"'", "'{\"deleted\": 1e400}'", '\'{"deleted": "abc"}\''),
    *(
        "'{\"deleted\": null}'",
        "'{\"wraps-expired\": 1e15}'",
        "'{\"wraps-expired\": 1e-9}'",
        "'{\"wraps-expired\": -1}'",
    ),
    *(
        "'{\"wraps-expired\": 86399999913600}'",
        '\'{"\\u202e\\u001b": {"a": [1]}}\'',
        "'{\"deleted\": 99999999999999999999}'",
    ),
    *('\'{"wraps-expired": "x"}\'', "'{\"wraps-expired\": true}'", "('[' || repeat('9', 5000) || ']')"),
    *(
        "(repeat('[', 3000) || repeat(']', 3000))",
        "(SELECT json_object_agg(i, i)::text FROM generate_series(1, 3000) AS i)",
    ),
)
#: Values of each type that PostgreSQL takes, and that nobody expects.
ODDITIES: dict[str, tuple[str, ...]] = {
    "timestamp with time zone": _TIMES,
    "interval": ("'999999999 days'", "'-999999999 days'", "'170000000 years'", "'-1 us'", "'1 mon'"),
    "text": (
        *("''", "repeat('x', 100000)", r"E'\x1b[2J\u202e\n\t<script>'", "'infinity'", "'no-such-sweeper'"),
        *("'[bold]x[/nope]'", "'interrupted'", "'failure'", "'running'", "'sending'", "'pending'", "'notifier'"),
    ),
    "jsonb": _JSON,
    "json": _JSON,
    "bigint": ("-9223372036854775808", "9223372036854775807", "0", "-1", "2000000"),
    "integer": ("-2147483648", "2147483647", "0", "-1"),
    "ARRAY": ("'{}'", "'{NULL}'", "'{{sweeps},{sinks}}'", "array_fill('x'::text, ARRAY[5000])"),
    "boolean": ("true", "false"),
    "uuid": ("gen_random_uuid()",),
}


class Change(NamedTuple):
    """A column of the odd rows of a table, and which of the odd values of its type it gets; both by their places."""

    column: int
    value: int
    null: bool


class Found(NamedTuple):
    """A column and a value, as SQL, that once hid what is in other rows."""

    table: str
    column: str
    value: str


def _sql(columns: Sequence[tuple[str, str, str]], change: Change | Found) -> bytes:
    if isinstance(change, Found):
        table, column, value = change
    else:
        table, column, kind = columns[change.column % len(columns)]
        value = "NULL" if change.null else ODDITIES[kind][change.value % len(ODDITIES[kind])]
        if kind in ("json", "jsonb") and not change.null:
            value = f"{value}::{kind}"
    return f"UPDATE {SCHEMA}.{table} SET {column} = {value} WHERE {_WHICH.get(table, 'true')}".encode()


CHANGES: st.SearchStrategy[list[Change | Found]] = st.lists(
    st.builds(Change, st.integers(0, 199), st.integers(0, 49), st.just(value=False) | st.booleans()),
    min_size=1,
    max_size=3,
)


@contextmanager
def _opened(servers: Servers) -> Iterator[Holds[list[Change | Found]]]:
    variables = {
        "DATABASE_URL": servers.postgres(),
        "REDIS_URL": servers.redis(),
        "SB_NOTIFICATION_WEBHOOK_URL": "http://127.0.0.1:1/",
        "SB_NOTIFICATION_TEAMS_URL": "http://127.0.0.1:1/",
        "SB_NOTIFICATION_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    with environment(variables), psycopg.connect(variables["DATABASE_URL"], autocommit=True) as sql:
        migrations.migrate(sql)
        columns = sql.execute(_COLUMNS).fetchall()
        with Readers() as readers:

            def holds(changes: list[Change | Found]) -> None:
                with environment(variables):
                    sql.execute(_BASE.encode())
                    for change in changes:
                        try:
                            sql.execute(_sql(columns, change))
                        except psycopg.Error:  # a constraint keeps it out
                            continue
                    readers.read()

            yield holds


FOUND: tuple[list[Change | Found], ...] = (
    # A time out of Python's calendar in one row was an error of the statement, and so of the page, `runs`, `verify`.
    [Found("sweep_run", "finished_at", "'infinity'"), Found("sweep_state", "last_slot", "'-infinity'")],
    [Found("process", "clock_ahead", "'170000000 years'"), Found("process", "started_at", "'0044-03-15 BC'")],
    # So was JSON that Python does not read; and counts that are none had `runs` and the next run of the sweeper fail.
    [Found("sweep_run", "counts", "('[' || repeat('9', 5000) || ']')::jsonb")],
    [Found("sweep_run", "counts", """'[{"a": "b"}]'""")],
    # One process with a cadence of ages left the gauges of all sweepers as they were, and the page without them.
    [Found("process", "cadences", """'{"wraps-expired": 86399999913600}'""")],
    # A brake without its moment was a fault of `why` and of the run; a batch of fewer rows than none swept none.
    [Found("sweep_state", "braked_for", "'usual'")],
    [Found("sweep_state", "batch_rows", "-2147483648")],
    # What a row says of itself steered the terminal of who looked at it.
    [Found("sweep_run", "worker", r"E'\x1b[2J'"), Found("sweep_state", "braked_for", r"E'\x1b[2J'")],
)
our_rows = Target("our-rows", CHANGES, _opened, found=FOUND, cases=12)
