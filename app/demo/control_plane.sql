-- The control plane's schema, as its api at schema version 38 leaves it, for the demo and the tests.
-- In production the api creates and migrates it; the worker never does. Foreign keys to tables that are not
-- here are left out.

CREATE TYPE environment_kind AS ENUM ('non_prod', 'prod');

CREATE FUNCTION touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = now();
    RETURN NEW;
END $$;

CREATE FUNCTION audit_events_reject_mutations() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_events is append-only';
END $$;

CREATE TABLE secret_wraps (
    id                  uuid NOT NULL DEFAULT gen_random_uuid(),
    request_id          uuid,
    encrypted_value     bytea NOT NULL,
    nonce               bytea NOT NULL,
    data_key_ciphertext bytea NOT NULL,
    kms_key_id          text NOT NULL,
    algorithm           text NOT NULL DEFAULT 'AES-256-GCM'::text,
    content_hash        bytea NOT NULL,
    byte_length         integer NOT NULL,
    created_at          timestamp with time zone NOT NULL DEFAULT now(),
    expires_at          timestamp with time zone NOT NULL,
    consumed_at         timestamp with time zone,
    consumed_by_agent   uuid,
    key_name            text,
    consumed_by_user    text,
    environment_id      uuid,
    issued_via          text NOT NULL DEFAULT 'request'::text,
    CONSTRAINT secret_wraps_pkey
        PRIMARY KEY (id),
    CONSTRAINT secret_wraps_algorithm_check
        CHECK ((algorithm = 'AES-256-GCM'::text)),
    CONSTRAINT secret_wraps_byte_length_check
        CHECK ((byte_length >= 0)),
    CONSTRAINT secret_wraps_issued_via_check
        CHECK ((issued_via = ANY (ARRAY['request'::text, 'direct_reveal'::text]))),
    CONSTRAINT secret_wraps_one_shot
        CHECK ((((consumed_at IS NULL) AND (consumed_by_agent IS NULL) AND (consumed_by_user IS NULL)) OR ((consumed_at IS NOT NULL) AND ((consumed_by_agent IS NOT NULL) OR (consumed_by_user IS NOT NULL)) AND (NOT ((consumed_by_agent IS NOT NULL) AND (consumed_by_user IS NOT NULL))))))
);
CREATE INDEX secret_wraps_active_idx ON secret_wraps
    USING btree (expires_at)
    WHERE (consumed_at IS NULL);
CREATE INDEX secret_wraps_environment_id_idx ON secret_wraps
    USING btree (environment_id)
    WHERE (environment_id IS NOT NULL);
CREATE INDEX secret_wraps_issued_via_idx ON secret_wraps
    USING btree (issued_via);
CREATE INDEX secret_wraps_request_idx ON secret_wraps
    USING btree (request_id)
    WHERE (request_id IS NOT NULL);
CREATE INDEX secret_wraps_request_key_idx ON secret_wraps
    USING btree (request_id, key_name)
    WHERE (request_id IS NOT NULL);

CREATE TABLE secrets (
    id                uuid NOT NULL DEFAULT gen_random_uuid(),
    cluster_name      text NOT NULL,
    provider_type     text NOT NULL,
    secret_ref        text NOT NULL,
    provider_config   jsonb NOT NULL DEFAULT '{}'::jsonb,
    labels            jsonb NOT NULL DEFAULT '{}'::jsonb,
    version           text,
    checksum          text,
    created_at_source timestamp with time zone,
    updated_at_source timestamp with time zone,
    status            text NOT NULL DEFAULT 'present'::text,
    first_seen_at     timestamp with time zone NOT NULL DEFAULT now(),
    last_seen_at      timestamp with time zone NOT NULL DEFAULT now(),
    created_at        timestamp with time zone NOT NULL DEFAULT now(),
    updated_at        timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT secrets_pkey
        PRIMARY KEY (id),
    CONSTRAINT secrets_status_check
        CHECK ((status = ANY (ARRAY['present'::text, 'missing'::text])))
);
CREATE INDEX secrets_cluster_idx ON secrets
    USING btree (cluster_name);
CREATE UNIQUE INDEX secrets_identity_idx ON secrets
    USING btree (cluster_name, provider_type, secret_ref);
CREATE INDEX secrets_labels_gin_idx ON secrets
    USING gin (labels);
CREATE INDEX secrets_last_seen_idx ON secrets
    USING btree (last_seen_at);
CREATE TRIGGER secrets_touch_updated_at BEFORE UPDATE ON secrets
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE agents (
    id                     uuid NOT NULL DEFAULT gen_random_uuid(),
    name                   text NOT NULL,
    scope                  jsonb NOT NULL DEFAULT '{}'::jsonb,
    status                 text NOT NULL DEFAULT 'active'::text,
    last_seen_at           timestamp with time zone,
    created_at             timestamp with time zone NOT NULL DEFAULT now(),
    updated_at             timestamp with time zone NOT NULL DEFAULT now(),
    secret_hash            bytea NOT NULL,
    public_key             bytea,
    public_key_algorithm   text,
    provider_connection_id uuid,
    cluster_name           text,
    provider_type          text,
    region                 text,
    agent_version          text,
    public_key_fingerprint text,
    capabilities           jsonb NOT NULL DEFAULT '[]'::jsonb,
    last_status            text,
    last_error             text,
    disabled_at            timestamp with time zone,
    revoked_at             timestamp with time zone,
    revoked_by             text,
    CONSTRAINT agents_name_key
        UNIQUE (name),
    CONSTRAINT agents_pkey
        PRIMARY KEY (id),
    CONSTRAINT agents_public_key_algorithm_check
        CHECK ((public_key_algorithm = 'x25519'::text)),
    CONSTRAINT agents_status_check
        CHECK ((status = ANY (ARRAY['enrolled'::text, 'active'::text, 'stale'::text, 'error'::text, 'disabled'::text, 'revoked'::text])))
);
CREATE INDEX agents_cluster_name_idx ON agents
    USING btree (cluster_name);
CREATE INDEX agents_last_seen_idx ON agents
    USING btree (last_seen_at);
CREATE INDEX agents_provider_connection_idx ON agents
    USING btree (provider_connection_id);
CREATE INDEX agents_revoked_idx ON agents
    USING btree (revoked_at);
CREATE INDEX agents_status_idx ON agents
    USING btree (status);
CREATE TRIGGER agents_touch_updated_at BEFORE UPDATE ON agents
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE sync_jobs (
    id               uuid NOT NULL DEFAULT gen_random_uuid(),
    agent_scope      jsonb NOT NULL DEFAULT '{}'::jsonb,
    job_type         text NOT NULL,
    status           text NOT NULL DEFAULT 'queued'::text,
    correlation_id   uuid NOT NULL,
    claimed_by       uuid,
    claim_expires_at timestamp with time zone,
    request_id       uuid,
    payload          jsonb NOT NULL DEFAULT '{}'::jsonb,
    created_at       timestamp with time zone NOT NULL DEFAULT now(),
    updated_at       timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT sync_jobs_pkey
        PRIMARY KEY (id),
    CONSTRAINT sync_jobs_job_type_check
        CHECK ((job_type = ANY (ARRAY['sync'::text, 'discover'::text, 'verify'::text, 'delete'::text, 'patch'::text, 'read'::text]))),
    CONSTRAINT sync_jobs_status_check
        CHECK ((status = ANY (ARRAY['queued'::text, 'claimed'::text, 'succeeded'::text, 'failed'::text, 'expired'::text])))
);
CREATE INDEX sync_jobs_correlation_idx ON sync_jobs
    USING btree (correlation_id);
CREATE INDEX sync_jobs_queued_idx ON sync_jobs
    USING btree (status, created_at)
    WHERE (status = 'queued'::text);
CREATE TRIGGER sync_jobs_touch_updated_at BEFORE UPDATE ON sync_jobs
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE gitops_observations (
    id                    uuid NOT NULL DEFAULT gen_random_uuid(),
    request_id            uuid NOT NULL,
    argocd_endpoint_id    uuid NOT NULL,
    application_name      text NOT NULL,
    application_namespace text,
    polling_state         text NOT NULL,
    observed_state        jsonb NOT NULL DEFAULT '{}'::jsonb,
    last_polled_at        timestamp with time zone,
    polls_count           integer NOT NULL DEFAULT 0,
    last_error            text,
    timeout_at            timestamp with time zone,
    created_at            timestamp with time zone NOT NULL DEFAULT now(),
    updated_at            timestamp with time zone NOT NULL DEFAULT now(),
    terminal_at           timestamp with time zone,
    CONSTRAINT gitops_observations_pkey
        PRIMARY KEY (id),
    CONSTRAINT gitops_observations_polling_state_check
        CHECK ((polling_state = ANY (ARRAY['queued'::text, 'active'::text, 'applied'::text, 'applied_unverified'::text, 'failed'::text])))
);
CREATE INDEX gitops_observations_active_idx ON gitops_observations
    USING btree (polling_state, last_polled_at)
    WHERE (polling_state = ANY (ARRAY['queued'::text, 'active'::text]));
CREATE INDEX gitops_observations_request_idx ON gitops_observations
    USING btree (request_id);
CREATE INDEX gitops_observations_timeout_idx ON gitops_observations
    USING btree (timeout_at)
    WHERE (polling_state = ANY (ARRAY['queued'::text, 'active'::text]));
CREATE TRIGGER gitops_observations_touch_updated_at BEFORE UPDATE ON gitops_observations
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE argocd_endpoints (
    id                        uuid NOT NULL DEFAULT gen_random_uuid(),
    name                      text NOT NULL,
    environment_id            uuid,
    base_url                  text NOT NULL,
    token_ciphertext          bytea NOT NULL,
    token_data_key_ciphertext bytea NOT NULL,
    token_nonce               bytea NOT NULL,
    token_kms_key_id          text NOT NULL,
    tls_ca_pem                text,
    tls_server_name           text,
    enabled                   boolean NOT NULL DEFAULT true,
    last_health_at            timestamp with time zone,
    last_health_error         text,
    created_at                timestamp with time zone NOT NULL DEFAULT now(),
    updated_at                timestamp with time zone NOT NULL DEFAULT now(),
    deleted_at                timestamp with time zone,
    CONSTRAINT argocd_endpoints_pkey
        PRIMARY KEY (id)
);
CREATE INDEX argocd_endpoints_environment_idx ON argocd_endpoints
    USING btree (environment_id)
    WHERE (deleted_at IS NULL);
CREATE UNIQUE INDEX argocd_endpoints_name_unique ON argocd_endpoints
    USING btree (name)
    WHERE (deleted_at IS NULL);
CREATE TRIGGER argocd_endpoints_touch_updated_at BEFORE UPDATE ON argocd_endpoints
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE provider_connections (
    id                        uuid NOT NULL DEFAULT gen_random_uuid(),
    name                      text NOT NULL,
    type                      text NOT NULL,
    auth_method               text NOT NULL,
    scope                     jsonb NOT NULL DEFAULT '{}'::jsonb,
    status                    text NOT NULL DEFAULT 'active'::text,
    created_at                timestamp with time zone NOT NULL DEFAULT now(),
    updated_at                timestamp with time zone NOT NULL DEFAULT now(),
    cluster_name              text,
    description               text,
    discover_enabled          boolean NOT NULL DEFAULT false,
    discover_interval_seconds integer NOT NULL DEFAULT 300,
    last_discover_at          timestamp with time zone,
    last_discover_status      text,
    last_discover_error       text,
    last_discover_started_at  timestamp with time zone,
    last_discover_finished_at timestamp with time zone,
    self_service_bindable     boolean NOT NULL DEFAULT false,
    CONSTRAINT provider_connections_name_key
        UNIQUE (name),
    CONSTRAINT provider_connections_pkey
        PRIMARY KEY (id),
    CONSTRAINT provider_connections_discover_interval_seconds_check
        CHECK (((discover_interval_seconds >= 60) AND (discover_interval_seconds <= 86400))),
    CONSTRAINT provider_connections_discover_requires_cluster
        CHECK (((discover_enabled = false) OR (cluster_name IS NOT NULL))),
    CONSTRAINT provider_connections_last_discover_status_check
        CHECK ((last_discover_status = ANY (ARRAY['success'::text, 'failure'::text, 'running'::text]))),
    CONSTRAINT provider_connections_status_check
        CHECK ((status = ANY (ARRAY['active'::text, 'disabled'::text]))),
    CONSTRAINT provider_connections_type_check
        CHECK ((type = ANY (ARRAY['aws-sm'::text, 'vault'::text, 'gcp-sm'::text, 'azure-kv'::text, 'kubernetes'::text])))
);
CREATE INDEX idx_provider_connections_self_service_bindable ON provider_connections
    USING btree (status)
    WHERE (self_service_bindable = true);
CREATE INDEX provider_connections_discover_enabled_idx ON provider_connections
    USING btree (last_discover_at NULLS FIRST)
    WHERE (discover_enabled = true);
CREATE TRIGGER provider_connections_touch_updated_at BEFORE UPDATE ON provider_connections
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE reveal_sessions (
    id                uuid NOT NULL DEFAULT gen_random_uuid(),
    user_id           text NOT NULL,
    project_id        uuid NOT NULL,
    environment_id    uuid NOT NULL,
    access_request_id uuid,
    ttl_seconds       smallint NOT NULL,
    opened_at         timestamp with time zone NOT NULL DEFAULT now(),
    expires_at        timestamp with time zone NOT NULL,
    expired_at        timestamp with time zone,
    expired_reason    text,
    wrap_ids          uuid[] NOT NULL,
    created_at        timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT reveal_sessions_pkey
        PRIMARY KEY (id),
    CONSTRAINT reveal_sessions_expired_reason_check
        CHECK (((expired_reason IS NULL) OR (expired_reason = ANY (ARRAY['ttl'::text, 'user_hide'::text, 'unmount'::text])))),
    CONSTRAINT reveal_sessions_ttl_seconds_check
        CHECK (((ttl_seconds >= 10) AND (ttl_seconds <= 300)))
);
CREATE INDEX reveal_sessions_active_idx ON reveal_sessions
    USING btree (expires_at)
    WHERE (expired_at IS NULL);
CREATE INDEX reveal_sessions_user_id_idx ON reveal_sessions
    USING btree (user_id);

CREATE TABLE access_requests (
    id                                 uuid NOT NULL DEFAULT gen_random_uuid(),
    requester_id                       text NOT NULL,
    secret_mapping_id                  uuid,
    type                               text NOT NULL,
    justification                      text NOT NULL,
    status                             text NOT NULL DEFAULT 'pending'::text,
    created_at                         timestamp with time zone NOT NULL DEFAULT now(),
    updated_at                         timestamp with time zone NOT NULL DEFAULT now(),
    workflow_id                        uuid,
    target_provider_type               text,
    target_provider_config             jsonb NOT NULL DEFAULT '{}'::jsonb,
    target_secret_ref                  text,
    target_keys                        jsonb NOT NULL DEFAULT '[]'::jsonb,
    target_scope                       jsonb NOT NULL DEFAULT '{}'::jsonb,
    job_id                             uuid,
    reject_reason                      text,
    environment_id                     uuid,
    target_team_id                     uuid,
    target_project_id                  uuid,
    target_environment_id              uuid,
    destination_provider_connection_id uuid,
    destination_secret_ref             text,
    destination_keys                   jsonb,
    refuse_reason                      text,
    fill_comment                       text,
    filled_at                          timestamp with time zone,
    filled_by_user_id                  text,
    fill_expires_at                    timestamp with time zone,
    matched_policy_rule_id             uuid,
    snap_requires_security_approval    boolean,
    snap_min_approvers                 smallint,
    CONSTRAINT access_requests_pkey
        PRIMARY KEY (id),
    CONSTRAINT access_requests_cross_team_snapshot_required
        CHECK (((type <> 'cross_team'::text) OR ((snap_requires_security_approval IS NOT NULL) AND (snap_min_approvers IS NOT NULL)))),
    CONSTRAINT access_requests_cross_team_status_only
        CHECK (((type = 'cross_team'::text) OR (status <> ALL (ARRAY['pending_values'::text, 'pending_verification'::text, 'refused'::text])))),
    CONSTRAINT access_requests_cross_team_targets_required
        CHECK (((type <> 'cross_team'::text) OR ((target_team_id IS NOT NULL) AND (target_project_id IS NOT NULL) AND (target_environment_id IS NOT NULL) AND (destination_provider_connection_id IS NOT NULL) AND (destination_secret_ref IS NOT NULL) AND (destination_keys IS NOT NULL)))),
    CONSTRAINT access_requests_status_check
        CHECK ((status = ANY (ARRAY['pending'::text, 'approved'::text, 'rejected'::text, 'cancelled'::text, 'executed'::text, 'failed'::text, 'expired'::text, 'pending_values'::text, 'pending_verification'::text, 'refused'::text]))),
    CONSTRAINT access_requests_target_fields_present
        CHECK (((type <> ALL (ARRAY['patch'::text, 'read'::text])) OR ((workflow_id IS NOT NULL) AND (target_provider_type IS NOT NULL) AND (target_secret_ref IS NOT NULL)))),
    CONSTRAINT access_requests_type_check
        CHECK ((type = ANY (ARRAY['read'::text, 'update'::text, 'rotate'::text, 'patch'::text, 'cross_team'::text])))
);
CREATE INDEX access_requests_environment_id_idx ON access_requests
    USING btree (environment_id)
    WHERE (environment_id IS NOT NULL);
CREATE INDEX access_requests_fill_expiry_idx ON access_requests
    USING btree (fill_expires_at)
    WHERE (status = 'pending_values'::text);
CREATE INDEX access_requests_inbox_idx ON access_requests
    USING btree (target_team_id, status)
    WHERE (status = 'pending_values'::text);
CREATE INDEX access_requests_pending_verify_idx ON access_requests
    USING btree (requester_id, status)
    WHERE (status = 'pending_verification'::text);
CREATE INDEX access_requests_requester_status_idx ON access_requests
    USING btree (requester_id, status);
CREATE INDEX access_requests_status_idx ON access_requests
    USING btree (status);
CREATE INDEX access_requests_workflow_idx ON access_requests
    USING btree (workflow_id)
    WHERE (workflow_id IS NOT NULL);
CREATE TRIGGER access_requests_touch_updated_at BEFORE UPDATE ON access_requests
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE projects (
    id            uuid NOT NULL DEFAULT gen_random_uuid(),
    name          text NOT NULL,
    owner_team_id text,
    status        text NOT NULL DEFAULT 'active'::text,
    created_at    timestamp with time zone NOT NULL DEFAULT now(),
    updated_at    timestamp with time zone NOT NULL DEFAULT now(),
    team_id       uuid,
    CONSTRAINT projects_name_key
        UNIQUE (name),
    CONSTRAINT projects_pkey
        PRIMARY KEY (id),
    CONSTRAINT projects_status_check
        CHECK ((status = ANY (ARRAY['active'::text, 'archived'::text])))
);
CREATE INDEX projects_team_id_idx ON projects
    USING btree (team_id)
    WHERE (team_id IS NOT NULL);
CREATE TRIGGER projects_touch_updated_at BEFORE UPDATE ON projects
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE environments (
    id          uuid NOT NULL DEFAULT gen_random_uuid(),
    project_id  uuid NOT NULL,
    name        text NOT NULL,
    type        text NOT NULL,
    created_at  timestamp with time zone NOT NULL DEFAULT now(),
    updated_at  timestamp with time zone NOT NULL DEFAULT now(),
    kind        environment_kind NOT NULL,
    risk_level  smallint NOT NULL DEFAULT 1,
    description text,
    CONSTRAINT environments_project_id_name_key
        UNIQUE (project_id, name),
    CONSTRAINT environments_pkey
        PRIMARY KEY (id),
    CONSTRAINT environments_risk_level_check
        CHECK (((risk_level >= 0) AND (risk_level <= 4))),
    CONSTRAINT environments_type_check
        CHECK ((type = ANY (ARRAY['dev'::text, 'staging'::text, 'uat'::text, 'prod'::text, 'other'::text])))
);
CREATE TRIGGER environments_touch_updated_at BEFORE UPDATE ON environments
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE secret_mappings (
    id                      uuid NOT NULL DEFAULT gen_random_uuid(),
    project_id              uuid,
    environment_id          uuid,
    source_provider_id      uuid NOT NULL,
    destination_provider_id uuid NOT NULL,
    secret_ref              text NOT NULL,
    policy                  jsonb NOT NULL DEFAULT '{}'::jsonb,
    created_at              timestamp with time zone NOT NULL DEFAULT now(),
    updated_at              timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT secret_mappings_source_provider_id_destination_provider_id__key
        UNIQUE (source_provider_id, destination_provider_id, secret_ref),
    CONSTRAINT secret_mappings_pkey
        PRIMARY KEY (id)
);
CREATE TRIGGER secret_mappings_touch_updated_at BEFORE UPDATE ON secret_mappings
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE workflow_definitions (
    id                         uuid NOT NULL DEFAULT gen_random_uuid(),
    name                       text NOT NULL,
    description                text NOT NULL DEFAULT ''::text,
    min_approvers              integer NOT NULL DEFAULT 1,
    approver_role_id           uuid,
    wrap_ttl_created           interval NOT NULL DEFAULT '7 days'::interval,
    wrap_ttl_approved          interval NOT NULL DEFAULT '01:00:00'::interval,
    wrap_ttl_claimed           interval NOT NULL DEFAULT '00:05:00'::interval,
    request_ttl                interval NOT NULL DEFAULT '14 days'::interval,
    require_justification      boolean NOT NULL DEFAULT true,
    allow_self_approval        boolean NOT NULL DEFAULT false,
    notification_channels      jsonb NOT NULL DEFAULT '[]'::jsonb,
    is_default                 boolean NOT NULL DEFAULT false,
    enabled                    boolean NOT NULL DEFAULT true,
    is_system                  boolean NOT NULL DEFAULT false,
    created_at                 timestamp with time zone NOT NULL DEFAULT now(),
    updated_at                 timestamp with time zone NOT NULL DEFAULT now(),
    fill_ttl_seconds           integer NOT NULL DEFAULT 86400,
    requires_security_approval boolean NOT NULL DEFAULT false,
    scoped_policy_authorable   boolean NOT NULL DEFAULT false,
    CONSTRAINT workflow_definitions_name_key
        UNIQUE (name),
    CONSTRAINT workflow_definitions_pkey
        PRIMARY KEY (id),
    CONSTRAINT workflow_definitions_fill_ttl_seconds_check
        CHECK ((fill_ttl_seconds > 0)),
    CONSTRAINT workflow_definitions_min_approvers_check
        CHECK ((min_approvers >= 0))
);
CREATE UNIQUE INDEX workflow_definitions_one_default ON workflow_definitions
    USING btree (is_default)
    WHERE (is_default = true);
CREATE INDEX workflow_definitions_scoped_policy_authorable_idx ON workflow_definitions
    USING btree (name)
    WHERE ((enabled = true) AND (scoped_policy_authorable = true));
CREATE TRIGGER workflow_definitions_touch_updated_at BEFORE UPDATE ON workflow_definitions
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE teams (
    id             uuid NOT NULL DEFAULT gen_random_uuid(),
    name           text NOT NULL,
    parent_team_id uuid,
    status         text NOT NULL DEFAULT 'active'::text,
    description    text,
    created_at     timestamp with time zone NOT NULL DEFAULT now(),
    updated_at     timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT teams_pkey
        PRIMARY KEY (id),
    CONSTRAINT teams_name_check
        CHECK ((name <> ''::text)),
    CONSTRAINT teams_status_check
        CHECK ((status = ANY (ARRAY['active'::text, 'archived'::text])))
);
CREATE UNIQUE INDEX teams_name_per_parent_uniq ON teams
    USING btree (parent_team_id, name)
    WHERE (parent_team_id IS NOT NULL);
CREATE UNIQUE INDEX teams_name_root_uniq ON teams
    USING btree (name)
    WHERE (parent_team_id IS NULL);
CREATE INDEX teams_parent_team_id_idx ON teams
    USING btree (parent_team_id)
    WHERE (parent_team_id IS NOT NULL);
CREATE TRIGGER teams_touch_updated_at BEFORE UPDATE ON teams
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE gitops_app_mappings (
    id                     uuid NOT NULL DEFAULT gen_random_uuid(),
    secret_mapping_id      uuid,
    provider_connection_id uuid,
    argocd_endpoint_id     uuid NOT NULL,
    application_name       text NOT NULL,
    application_namespace  text,
    project_name           text,
    cluster_name           text,
    enabled                boolean NOT NULL DEFAULT true,
    created_at             timestamp with time zone NOT NULL DEFAULT now(),
    updated_at             timestamp with time zone NOT NULL DEFAULT now(),
    deleted_at             timestamp with time zone,
    CONSTRAINT gitops_app_mappings_pkey
        PRIMARY KEY (id),
    CONSTRAINT gitops_app_mappings_one_scope
        CHECK ((((secret_mapping_id IS NOT NULL) AND (provider_connection_id IS NULL)) OR ((secret_mapping_id IS NULL) AND (provider_connection_id IS NOT NULL))))
);
CREATE INDEX gitops_app_mappings_endpoint_idx ON gitops_app_mappings
    USING btree (argocd_endpoint_id)
    WHERE (deleted_at IS NULL);
CREATE INDEX gitops_app_mappings_provider_connection_idx ON gitops_app_mappings
    USING btree (provider_connection_id)
    WHERE (deleted_at IS NULL);
CREATE INDEX gitops_app_mappings_secret_mapping_idx ON gitops_app_mappings
    USING btree (secret_mapping_id)
    WHERE (deleted_at IS NULL);
CREATE TRIGGER gitops_app_mappings_touch_updated_at BEFORE UPDATE ON gitops_app_mappings
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE audit_events (
    id             uuid NOT NULL DEFAULT gen_random_uuid(),
    actor          text NOT NULL,
    action         text NOT NULL,
    resource       text NOT NULL,
    status         text NOT NULL,
    correlation_id uuid NOT NULL,
    metadata       jsonb NOT NULL DEFAULT '{}'::jsonb,
    occurred_at    timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT audit_events_pkey
        PRIMARY KEY (id),
    CONSTRAINT audit_events_status_check
        CHECK ((status = ANY (ARRAY['success'::text, 'failure'::text, 'denied'::text])))
);
CREATE INDEX audit_events_actor_time_idx ON audit_events
    USING btree (actor, occurred_at DESC);
CREATE INDEX audit_events_correlation_idx ON audit_events
    USING btree (correlation_id);
CREATE INDEX audit_events_resource_time_idx ON audit_events
    USING btree (resource, occurred_at DESC);
CREATE TRIGGER audit_events_no_delete BEFORE DELETE ON audit_events
    FOR EACH ROW EXECUTE FUNCTION audit_events_reject_mutations();
CREATE TRIGGER audit_events_no_update BEFORE UPDATE ON audit_events
    FOR EACH ROW EXECUTE FUNCTION audit_events_reject_mutations();

CREATE TABLE project_provider_connections (
    id                     uuid NOT NULL DEFAULT gen_random_uuid(),
    project_id             uuid NOT NULL,
    environment_id         uuid,
    provider_connection_id uuid NOT NULL,
    purpose                text NOT NULL DEFAULT 'destination'::text,
    created_at             timestamp with time zone NOT NULL DEFAULT now(),
    updated_at             timestamp with time zone NOT NULL DEFAULT now(),
    created_by             text,
    CONSTRAINT project_provider_connections_pkey
        PRIMARY KEY (id),
    CONSTRAINT project_provider_connections_purpose_check
        CHECK ((purpose = 'destination'::text))
);
CREATE INDEX project_provider_connections_connection_idx ON project_provider_connections
    USING btree (provider_connection_id);
CREATE UNIQUE INDEX project_provider_connections_env_specific_uniq ON project_provider_connections
    USING btree (project_id, environment_id, provider_connection_id, purpose)
    WHERE (environment_id IS NOT NULL);
CREATE INDEX project_provider_connections_project_env_idx ON project_provider_connections
    USING btree (project_id, environment_id)
    WHERE (environment_id IS NOT NULL);
CREATE INDEX project_provider_connections_project_idx ON project_provider_connections
    USING btree (project_id);
CREATE UNIQUE INDEX project_provider_connections_project_wide_uniq ON project_provider_connections
    USING btree (project_id, provider_connection_id, purpose)
    WHERE (environment_id IS NULL);
CREATE TRIGGER project_provider_connections_touch_updated_at BEFORE UPDATE ON project_provider_connections
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();

CREATE TABLE agent_enrollment_tokens (
    id                     uuid NOT NULL DEFAULT gen_random_uuid(),
    provider_connection_id uuid NOT NULL,
    name                   text,
    token_hash             bytea NOT NULL,
    expected_cluster_name  text,
    expected_provider_type text,
    expires_at             timestamp with time zone NOT NULL,
    consumed_at            timestamp with time zone,
    consumed_by_agent_id   uuid,
    revoked_at             timestamp with time zone,
    revoked_by             text,
    created_by             text NOT NULL,
    created_at             timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT agent_enrollment_tokens_token_hash_key
        UNIQUE (token_hash),
    CONSTRAINT agent_enrollment_tokens_pkey
        PRIMARY KEY (id),
    CONSTRAINT agent_enrollment_tokens_expiry_after_creation
        CHECK ((expires_at > created_at))
);
CREATE INDEX agent_enrollment_tokens_connection_idx ON agent_enrollment_tokens
    USING btree (provider_connection_id);
CREATE INDEX agent_enrollment_tokens_consumed_idx ON agent_enrollment_tokens
    USING btree (consumed_at);
CREATE INDEX agent_enrollment_tokens_expires_idx ON agent_enrollment_tokens
    USING btree (expires_at);
CREATE INDEX agent_enrollment_tokens_revoked_idx ON agent_enrollment_tokens
    USING btree (revoked_at);

CREATE TABLE sync_runs (
    id                  uuid NOT NULL DEFAULT gen_random_uuid(),
    mapping_id          uuid NOT NULL,
    job_id              uuid,
    status              text NOT NULL,
    source_version      text,
    destination_version text,
    content_hash        text,
    error               text,
    started_at          timestamp with time zone NOT NULL,
    finished_at         timestamp with time zone,
    CONSTRAINT sync_runs_pkey
        PRIMARY KEY (id),
    CONSTRAINT sync_runs_status_check
        CHECK ((status = ANY (ARRAY['succeeded'::text, 'failed'::text, 'conflict'::text, 'skipped'::text])))
);
CREATE INDEX sync_runs_mapping_started_idx ON sync_runs
    USING btree (mapping_id, started_at DESC);

CREATE TABLE sessions (
    id              uuid NOT NULL DEFAULT gen_random_uuid(),
    user_id         uuid NOT NULL,
    token_hash      bytea NOT NULL,
    created_at      timestamp with time zone NOT NULL DEFAULT now(),
    expires_at      timestamp with time zone NOT NULL,
    idle_expires_at timestamp with time zone NOT NULL,
    last_mfa_at     timestamp with time zone,
    revoked_at      timestamp with time zone,
    ip              text,
    user_agent      text,
    CONSTRAINT sessions_pkey
        PRIMARY KEY (id)
);
CREATE INDEX sessions_expires_at_idx ON sessions
    USING btree (expires_at);
CREATE UNIQUE INDEX sessions_token_hash_uniq ON sessions
    USING btree (token_hash);
CREATE INDEX sessions_user_id_active_idx ON sessions
    USING btree (user_id, expires_at)
    WHERE (revoked_at IS NULL);

-- Foreign keys, after all tables that they point to.
ALTER TABLE secret_wraps
    ADD CONSTRAINT secret_wraps_consumed_by_agent_fkey
    FOREIGN KEY (consumed_by_agent) REFERENCES agents(id) ON DELETE SET NULL;
ALTER TABLE secret_wraps
    ADD CONSTRAINT secret_wraps_environment_id_fkey
    FOREIGN KEY (environment_id) REFERENCES environments(id);
ALTER TABLE secret_wraps
    ADD CONSTRAINT secret_wraps_request_id_fkey
    FOREIGN KEY (request_id) REFERENCES access_requests(id) ON DELETE CASCADE;
ALTER TABLE agents
    ADD CONSTRAINT agents_provider_connection_id_fkey
    FOREIGN KEY (provider_connection_id) REFERENCES provider_connections(id) ON DELETE SET NULL;
ALTER TABLE sync_jobs
    ADD CONSTRAINT sync_jobs_claimed_by_fkey
    FOREIGN KEY (claimed_by) REFERENCES agents(id) ON DELETE SET NULL;
ALTER TABLE sync_jobs
    ADD CONSTRAINT sync_jobs_request_id_fkey
    FOREIGN KEY (request_id) REFERENCES access_requests(id) ON DELETE SET NULL;
ALTER TABLE gitops_observations
    ADD CONSTRAINT gitops_observations_argocd_endpoint_id_fkey
    FOREIGN KEY (argocd_endpoint_id) REFERENCES argocd_endpoints(id) ON DELETE RESTRICT;
ALTER TABLE gitops_observations
    ADD CONSTRAINT gitops_observations_request_id_fkey
    FOREIGN KEY (request_id) REFERENCES access_requests(id) ON DELETE CASCADE;
ALTER TABLE argocd_endpoints
    ADD CONSTRAINT argocd_endpoints_environment_id_fkey
    FOREIGN KEY (environment_id) REFERENCES environments(id) ON DELETE SET NULL;
ALTER TABLE reveal_sessions
    ADD CONSTRAINT reveal_sessions_access_request_id_fkey
    FOREIGN KEY (access_request_id) REFERENCES access_requests(id) ON DELETE SET NULL;
ALTER TABLE reveal_sessions
    ADD CONSTRAINT reveal_sessions_environment_id_fkey
    FOREIGN KEY (environment_id) REFERENCES environments(id) ON DELETE CASCADE;
ALTER TABLE reveal_sessions
    ADD CONSTRAINT reveal_sessions_project_id_fkey
    FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE;
ALTER TABLE access_requests
    ADD CONSTRAINT access_requests_destination_provider_connection_id_fkey
    FOREIGN KEY (destination_provider_connection_id) REFERENCES provider_connections(id) ON DELETE RESTRICT;
ALTER TABLE access_requests
    ADD CONSTRAINT access_requests_environment_id_fkey
    FOREIGN KEY (environment_id) REFERENCES environments(id);
ALTER TABLE access_requests
    ADD CONSTRAINT access_requests_job_id_fkey
    FOREIGN KEY (job_id) REFERENCES sync_jobs(id) ON DELETE SET NULL;
ALTER TABLE access_requests
    ADD CONSTRAINT access_requests_secret_mapping_id_fkey
    FOREIGN KEY (secret_mapping_id) REFERENCES secret_mappings(id) ON DELETE CASCADE;
ALTER TABLE access_requests
    ADD CONSTRAINT access_requests_target_environment_id_fkey
    FOREIGN KEY (target_environment_id) REFERENCES environments(id) ON DELETE RESTRICT;
ALTER TABLE access_requests
    ADD CONSTRAINT access_requests_target_project_id_fkey
    FOREIGN KEY (target_project_id) REFERENCES projects(id) ON DELETE RESTRICT;
ALTER TABLE access_requests
    ADD CONSTRAINT access_requests_target_team_id_fkey
    FOREIGN KEY (target_team_id) REFERENCES teams(id) ON DELETE RESTRICT;
ALTER TABLE access_requests
    ADD CONSTRAINT access_requests_workflow_id_fkey
    FOREIGN KEY (workflow_id) REFERENCES workflow_definitions(id);
ALTER TABLE projects
    ADD CONSTRAINT projects_team_id_fkey
    FOREIGN KEY (team_id) REFERENCES teams(id) ON DELETE SET NULL;
ALTER TABLE environments
    ADD CONSTRAINT environments_project_id_fkey
    FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE;
ALTER TABLE secret_mappings
    ADD CONSTRAINT secret_mappings_destination_provider_id_fkey
    FOREIGN KEY (destination_provider_id) REFERENCES provider_connections(id) ON DELETE CASCADE;
ALTER TABLE secret_mappings
    ADD CONSTRAINT secret_mappings_environment_id_fkey
    FOREIGN KEY (environment_id) REFERENCES environments(id) ON DELETE SET NULL;
ALTER TABLE secret_mappings
    ADD CONSTRAINT secret_mappings_project_id_fkey
    FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE SET NULL;
ALTER TABLE secret_mappings
    ADD CONSTRAINT secret_mappings_source_provider_id_fkey
    FOREIGN KEY (source_provider_id) REFERENCES provider_connections(id) ON DELETE CASCADE;
ALTER TABLE teams
    ADD CONSTRAINT teams_parent_team_id_fkey
    FOREIGN KEY (parent_team_id) REFERENCES teams(id) ON DELETE RESTRICT;
ALTER TABLE gitops_app_mappings
    ADD CONSTRAINT gitops_app_mappings_argocd_endpoint_id_fkey
    FOREIGN KEY (argocd_endpoint_id) REFERENCES argocd_endpoints(id) ON DELETE RESTRICT;
ALTER TABLE gitops_app_mappings
    ADD CONSTRAINT gitops_app_mappings_provider_connection_id_fkey
    FOREIGN KEY (provider_connection_id) REFERENCES provider_connections(id) ON DELETE CASCADE;
ALTER TABLE gitops_app_mappings
    ADD CONSTRAINT gitops_app_mappings_secret_mapping_id_fkey
    FOREIGN KEY (secret_mapping_id) REFERENCES secret_mappings(id) ON DELETE CASCADE;
ALTER TABLE project_provider_connections
    ADD CONSTRAINT project_provider_connections_environment_id_fkey
    FOREIGN KEY (environment_id) REFERENCES environments(id) ON DELETE CASCADE;
ALTER TABLE project_provider_connections
    ADD CONSTRAINT project_provider_connections_project_id_fkey
    FOREIGN KEY (project_id) REFERENCES projects(id) ON DELETE CASCADE;
ALTER TABLE project_provider_connections
    ADD CONSTRAINT project_provider_connections_provider_connection_id_fkey
    FOREIGN KEY (provider_connection_id) REFERENCES provider_connections(id) ON DELETE RESTRICT;
ALTER TABLE agent_enrollment_tokens
    ADD CONSTRAINT agent_enrollment_tokens_consumed_by_agent_id_fkey
    FOREIGN KEY (consumed_by_agent_id) REFERENCES agents(id) ON DELETE SET NULL;
ALTER TABLE agent_enrollment_tokens
    ADD CONSTRAINT agent_enrollment_tokens_provider_connection_id_fkey
    FOREIGN KEY (provider_connection_id) REFERENCES provider_connections(id) ON DELETE CASCADE;
ALTER TABLE sync_runs
    ADD CONSTRAINT sync_runs_job_id_fkey
    FOREIGN KEY (job_id) REFERENCES sync_jobs(id) ON DELETE SET NULL;
ALTER TABLE sync_runs
    ADD CONSTRAINT sync_runs_mapping_id_fkey
    FOREIGN KEY (mapping_id) REFERENCES secret_mappings(id) ON DELETE CASCADE;

-- The mark of the migration tool: version 38, not left half done.
CREATE TABLE schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL);
INSERT INTO schema_migrations (version, dirty) VALUES (38, false);
