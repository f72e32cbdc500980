-- What PostgreSQL commits, written down by triggers in the same transaction, for the checks: nothing of this is ours in
-- production. `n` is drawn while the row is locked, so that changes of one row come in the order of their commits.
CREATE SCHEMA chaos;

CREATE TABLE chaos.change (
    n        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid      bigint NOT NULL,
    -- When the transaction began, and the moment of the change, both by this server's clock.
    began    timestamptz NOT NULL,
    at       timestamptz NOT NULL,
    -- Whether the worker's role did it, or the load.
    ours     boolean NOT NULL,
    session  text NOT NULL,
    -- The interval of the sweepers of the process that did it.
    cadence  interval,
    relation text NOT NULL,
    op       text NOT NULL,
    before   jsonb,
    after    jsonb
);

-- Who holds this lock makes all writers of a relation wait in the middle of their transactions: a fault point.
CREATE FUNCTION chaos.gate(relation text) RETURNS bigint LANGUAGE sql IMMUTABLE AS
$$ SELECT hashtextextended('chaos.gate.' || relation, 0) $$;

-- The arguments are the columns that are kept.
CREATE FUNCTION chaos.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    old_row jsonb; new_row jsonb;
BEGIN
    -- A lock of the session would stay with it if it were cancelled here. What is taken in a block that is rolled back
    -- is given back with it, whatever happens.
    BEGIN
        PERFORM pg_advisory_xact_lock_shared(chaos.gate(TG_TABLE_NAME));
        RAISE SQLSTATE 'GATE0';
    EXCEPTION WHEN SQLSTATE 'GATE0' THEN
        NULL;
    END;
    IF TG_OP <> 'INSERT' THEN
        SELECT jsonb_object_agg(key, value) INTO old_row FROM jsonb_each(to_jsonb(OLD)) WHERE key = ANY (TG_ARGV);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        SELECT jsonb_object_agg(key, value) INTO new_row FROM jsonb_each(to_jsonb(NEW)) WHERE key = ANY (TG_ARGV);
    END IF;
    INSERT INTO chaos.change (xid, began, at, ours, session, cadence, relation, op, before, after)
    VALUES (pg_current_xact_id()::text::bigint, now(), clock_timestamp(), session_user <> 'postgres',
            current_setting('application_name'), nullif(current_setting('chaos.cadence', true), '')::interval,
            TG_TABLE_NAME, lower(TG_OP), old_row, new_row);
    RETURN NULL;
END $$;

-- Rows that the load has renewed: whoever finds one of them gone has found one lost. In the renewing transaction.
CREATE TABLE chaos.renewed (
    relation text NOT NULL,
    id       text NOT NULL,
    PRIMARY KEY (relation, id)
);

CREATE TRIGGER note AFTER INSERT OR UPDATE ON secrets_bridge_worker.sweep_state FOR EACH ROW
    EXECUTE FUNCTION chaos.note('name', 'last_slot', 'previous_slot', 'token', 'failures');
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON secrets_bridge_worker.sweep_run FOR EACH ROW
    EXECUTE FUNCTION chaos.note('id', 'name', 'slot', 'covered', 'token', 'worker', 'requested_by', 'cutoff',
                                'outcome', 'changed', 'batches', 'counts');
CREATE TRIGGER note AFTER INSERT OR DELETE ON secrets_bridge_worker.notification_event FOR EACH ROW
    EXECUTE FUNCTION chaos.note('id', 'kind', 'component', 'severity', 'title', 'metadata', 'tallies');
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON secrets_bridge_worker.notification_delivery FOR EACH ROW
    EXECUTE FUNCTION chaos.note('id', 'event_id', 'target', 'state', 'reason', 'attempts', 'digest');
CREATE TRIGGER note AFTER DELETE ON secret_wraps FOR EACH ROW EXECUTE FUNCTION chaos.note('id', 'expires_at');
CREATE TRIGGER note AFTER DELETE ON sessions FOR EACH ROW EXECUTE FUNCTION chaos.note('id', 'expires_at');
CREATE TRIGGER note AFTER UPDATE OF status ON secrets FOR EACH ROW
    EXECUTE FUNCTION chaos.note('id', 'status', 'last_seen_at');
CREATE TRIGGER note AFTER UPDATE OF status ON agents FOR EACH ROW
    EXECUTE FUNCTION chaos.note('id', 'status', 'last_seen_at');
CREATE TRIGGER note AFTER INSERT OR UPDATE OF status ON sync_jobs FOR EACH ROW
    EXECUTE FUNCTION chaos.note('id', 'job_type', 'status', 'claim_expires_at', 'payload');
CREATE TRIGGER note AFTER UPDATE OF last_discover_status ON provider_connections FOR EACH ROW
    EXECUTE FUNCTION chaos.note('id', 'last_discover_status', 'last_discover_started_at', 'discover_interval_seconds');
CREATE TRIGGER note AFTER UPDATE ON reveal_sessions FOR EACH ROW
    EXECUTE FUNCTION chaos.note('id', 'expires_at', 'expired_at');
CREATE TRIGGER note AFTER UPDATE ON gitops_observations FOR EACH ROW
    EXECUTE FUNCTION chaos.note('id', 'polling_state', 'polls_count', 'last_polled_at', 'timeout_at');
CREATE TRIGGER note AFTER UPDATE OF status ON access_requests FOR EACH ROW
    EXECUTE FUNCTION chaos.note('id', 'status', 'fill_expires_at');
