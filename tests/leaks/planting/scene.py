"""Rows for every sweeper to sweep, every one of them full of canaries, and some of them with an error in store."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import Connection

from tests.leaks.canaries import Canaries
from tests.leaks.planting.rows import Planting, Sql

LONG_AGO = Sql("now() - interval '30 days'")
#: A row of each table that no sweep is about.
_BYSTANDERS: Mapping[str, Mapping[str, Any]] = {
    "agent_enrollment_tokens": {"expires_at": Sql("now() + interval '1 day'")},
    "audit_events": {"status": "failure"},
    "environments": {"type": "prod"},
    "gitops_app_mappings": {"secret_mapping_id": Sql("gen_random_uuid()")},
    "project_provider_connections": {},
    "projects": {},
    "secret_mappings": {},
    "sync_runs": {"status": "failed"},
    "teams": {},
    "workflow_definitions": {},
}
#: Kinds of errors that are one row's, so that a sweep steps around it; the trigger below knows them.
_OF_ROWS = ("raise", "unique", "check", "null", "encoding", "number", "enum", "json", "sqlstate")
#: Kinds that end a run, each for the table of a sweeper that has to do without any good one.
_OF_RUNS = {
    "access_requests": "lock",
    "agents": "forbidden",
    "provider_connections": "denied",
    "reveal_sessions": "deadlock",
    "secret_wraps": "killed",
    "secrets": "timeout",
    "sessions": "serialization",
    "sync_jobs": "policy",
}
#: Heals what ends runs, so that people are told of recoveries, too.
HEAL = "DELETE FROM faults.forced WHERE kind = ANY (%s)"
OF_RUNS = list(_OF_RUNS.values())
_NOT_MET = "SELECT sequencename FROM pg_sequences WHERE schemaname = 'faults' AND last_value IS NULL"
_FAULTS = """
CREATE SCHEMA faults;
CREATE TABLE faults.forced (id uuid PRIMARY KEY, kind text NOT NULL);
CREATE TABLE faults.once (content text CONSTRAINT "{unique}" UNIQUE);
CREATE TABLE faults.checked (content text CONSTRAINT "{check}" CHECK (content = ''));
CREATE TABLE faults.filled (id integer NOT NULL, "{null}" text);
CREATE TABLE faults."{denied}" ();
CREATE TABLE faults."{policy}" (content text);
ALTER TABLE faults."{policy}" ENABLE ROW LEVEL SECURITY;
GRANT USAGE ON SCHEMA faults TO PUBLIC;
GRANT ALL ON faults.forced, faults.once, faults.checked, faults.filled, faults."{policy}" TO PUBLIC;
CREATE FUNCTION faults.force() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    said text := OLD::text;
    name text := left(said, 60);
    kind text := (SELECT f.kind FROM faults.forced AS f WHERE f.id = OLD.id);
BEGIN
    IF kind IS NULL THEN
        RETURN coalesce(NEW, OLD);
    END IF;
    PERFORM nextval('faults.met_' || kind);  -- which no rollback takes back
    RAISE NOTICE '%', said;
    RAISE WARNING USING MESSAGE = said, DETAIL = said, HINT = said;
    CASE kind
        WHEN 'raise' THEN
            RAISE EXCEPTION USING MESSAGE = said, DETAIL = said, HINT = said, COLUMN = name, CONSTRAINT = name,
                  DATATYPE = name, TABLE = name, SCHEMA = name;
        WHEN 'unique' THEN INSERT INTO faults.once VALUES (name), (name);
        WHEN 'check' THEN INSERT INTO faults.checked VALUES (said);
        WHEN 'null' THEN INSERT INTO faults.filled VALUES (NULL, said);
        WHEN 'encoding' THEN PERFORM convert_from(convert_to(said, 'UTF8') || '\\xff', 'UTF8');
        WHEN 'number' THEN PERFORM said::integer;
        WHEN 'enum' THEN PERFORM said::environment_kind;
        WHEN 'json' THEN PERFORM ('{{"a": ' || said)::json;
        WHEN 'denied' THEN PERFORM FROM faults."{denied}";
        WHEN 'policy' THEN INSERT INTO faults."{policy}" VALUES (said);
        WHEN 'timeout' THEN PERFORM pg_sleep(100);
        WHEN 'killed' THEN PERFORM pg_terminate_backend(pg_backend_pid());
        ELSE
            RAISE EXCEPTION USING MESSAGE = said, DETAIL = said, HINT = said, ERRCODE =
                  CASE kind WHEN 'deadlock' THEN '40P01' WHEN 'serialization' THEN '40001' WHEN 'lock' THEN '55P03'
                            WHEN 'forbidden' THEN '42501'
                            ELSE left(upper(regexp_replace(said, '[^a-z0-9]', '', 'g')), 5) END;
    END CASE;
    RETURN coalesce(NEW, OLD);
END $$;
"""
#: First those whose runs go on.
_SWEPT = (
    *("access_requests", "gitops_observations", "reveal_sessions", "secrets", "sessions"),
    *("agents", "provider_connections", "secret_wraps", "sync_jobs"),
)
#: Which rows of a table a sweep is about, where there are others.
_SPARE = {"access_requests": "type = 'cross_team'"}


class Scene:
    """What there is to sweep."""

    def __init__(self, sql: Connection[Any], canaries: Canaries, argocd: str) -> None:
        """`argocd` is where the ArgoCDs are: each is a path there."""
        self._sql = sql
        self._canaries = canaries
        self._argocd = argocd
        self.planting = Planting(sql, canaries)
        #: Data keys of the endpoints' tokens, by what the key service is sent.
        self.data_keys: dict[str, bytes] = {}

    def set(self) -> None:
        """Set it."""
        names = {name: self._canaries[f"name {name}"] for name in ("unique", "check", "null", "denied", "policy")}
        self._sql.execute(_FAULTS.format(**names).encode())
        for kind in (*_OF_ROWS, *OF_RUNS):
            self._sql.execute(f"CREATE SEQUENCE faults.met_{kind}".encode())
        self._sql.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA faults TO PUBLIC")
        for table, given in _BYSTANDERS.items():
            self.planting.insert(table, **given)
        for _ in range(6):
            self.more()
        self._argocds()
        for table in _SWEPT:
            self._force(table)
        assert not (missing := list(self.planting.missing())), missing

    @staticmethod
    def not_met(sql: Connection[Any]) -> list[str]:
        """Return the kinds of errors that no row was met by yet."""
        return [name for (name,) in sql.execute(_NOT_MET)]

    def more(self) -> None:
        """Insert one more row for each sweeper."""
        insert = self.planting.insert
        wrap = insert("secret_wraps", expires_at=LONG_AGO, consumed_at=LONG_AGO, consumed_by_agent=None,
                      algorithm="AES-256-GCM")  # fmt: skip
        insert("secrets", last_seen_at=LONG_AGO)
        insert("agents", status="active", last_seen_at=LONG_AGO)
        insert("sync_jobs", job_type="sync", status="claimed", claim_expires_at=LONG_AGO)
        insert("sync_jobs", job_type="discover", status="claimed", claim_expires_at=LONG_AGO)
        insert("reveal_sessions", expires_at=LONG_AGO, wrap_ids=[wrap])
        insert("sessions", expires_at=LONG_AGO, idle_expires_at=LONG_AGO)
        self._request(type="cross_team", status="pending_values", fill_expires_at=LONG_AGO)
        for enabled, started in ((True, None), (True, LONG_AGO)):
            status = None if started is None else "running"
            insert("provider_connections", type="vault", discover_enabled=enabled, discover_interval_seconds=60,
                   last_discover_status=status, last_discover_started_at=started)  # fmt: skip

    def _request(self, **given: Any) -> str:
        ids = ("target_team_id", "target_project_id", "target_environment_id", "destination_provider_connection_id")
        row = {**dict.fromkeys(ids, Sql("gen_random_uuid()")), "snap_requires_security_approval": False}
        return self.planting.insert("access_requests", **row, snap_min_approvers=1, **given)

    def _argocds(self) -> None:
        """Insert an ArgoCD for each way to answer, and one whose name nobody knows; a few with bad columns."""
        request = self._request(type="update")
        for kind in ("401", "403", "404", "429", "500", "302", "garbage", "shape", "sealed", "broken"):
            secret = self._canaries[f"ArgoCD {kind} path"]
            self._argocd_endpoint(request, kind, f"{self._argocd}/{kind}/argocd/{secret}")
        self._argocd_endpoint(request, "unknown", f"http://{self._canaries['ArgoCD host']}.invalid")
        self._argocd_endpoint(request, "login", f"http://u:{self._canaries['ArgoCD login']}@127.0.0.1")
        given = {"base_url": f"{self._argocd}/fine/argocd/x", "tls_server_name": None}
        self._observe(request, self.planting.insert("argocd_endpoints", **given))
        fine = self._argocd_endpoint(request, "fine", f"{self._argocd}/fine/argocd/{self._canaries['ArgoCD path']}")
        for _ in range(2):
            self._observe(request, fine)
        self.planting.insert("argocd_endpoints", enabled=False)

    def _argocd_endpoint(self, request: str, kind: str, url: str) -> str:
        data_key = self._canaries.of_length(f"ArgoCD {kind} data key", 32).encode()
        wrapped = f"vault:v1:{kind}:{self._canaries[f'ArgoCD {kind} wrapped key']}"
        self.data_keys[wrapped] = data_key
        nonce = os.urandom(12)
        sealed = AESGCM(data_key).encrypt(nonce, self._canaries[f"ArgoCD {kind} token"].encode(), None)
        endpoint = self.planting.insert(
            "argocd_endpoints",
            base_url=url,
            token_ciphertext=b"broken" * 10 if kind == "broken" else sealed,
            token_nonce=nonce,
            token_data_key_ciphertext=wrapped.encode(),
            tls_ca_pem=None,
            tls_server_name=None,
            last_health_error=None,
        )
        for _ in range(2):
            self._observe(request, endpoint)
        return endpoint

    def _observe(self, request: str, endpoint: str) -> None:
        self.planting.insert(
            "gitops_observations", request_id=request, argocd_endpoint_id=endpoint, polling_state="queued"
        )

    def _force(self, table: str) -> None:
        """Have rows of a table be met by errors, each by its own; of observations the newest, which are spare."""
        self._sql.execute(
            f"CREATE TRIGGER forced BEFORE UPDATE OR DELETE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION faults.force()".encode()
        )
        first = 2 * _SWEPT.index(
            table
        )  # a few of each: what is stepped around is found by halves, which takes its time
        kinds = [
            (*_OF_ROWS * 3,)[first],
            (*_OF_ROWS * 3,)[first + 1],
            *([_OF_RUNS[table]] if table in _OF_RUNS else []),
        ]
        self._sql.execute(
            f"""
            INSERT INTO faults.forced
            SELECT chosen.id, kind FROM (SELECT id, row_number() OVER (ORDER BY created_at DESC, ctid DESC) AS n
                                           FROM {table} WHERE {_SPARE.get(table, "true")}) AS chosen
              JOIN unnest(%s::text[]) WITH ORDINALITY AS kinds (kind, n) USING (n)
            """.encode(),
            [kinds],
        )

    def plaintext(self, wrapped: str) -> str | None:
        """Return a data key as a key service answers it."""
        found = self.data_keys.get(wrapped)
        return base64.b64encode(found).decode() if found else None
