-- What the worker's role needs, with everything switched on. As an owner of the api's tables:
--
--     sb-worker migrate                      (once, as a role that may create a schema; or run `sb-worker migrate --sql`)
--     psql --set worker=secrets_bridge_worker_role --file deploy/grants.sql "$DATABASE_URL"
--
-- The role must be there: CREATE ROLE ... LOGIN. A table that this api does not have needs no grant and is passed over;
-- run it again once the api or the worker's own schema has been upgraded. `sb-worker check` says what is missing.
\set ON_ERROR_STOP on
\if :{?worker}
\else
  DO $$ BEGIN RAISE 'the role is missing: psql --set worker=NAME --file deploy/grants.sql'; END $$;
\endif

SELECT format('GRANT %s ON %I TO %I', privileges, name, :'worker')
  FROM (VALUES ('SELECT, UPDATE, DELETE', 'secret_wraps'),
               ('SELECT, UPDATE, DELETE', 'sessions'),
               ('SELECT, UPDATE',         'secrets'),
               ('SELECT, UPDATE',         'agents'),
               ('SELECT, UPDATE',         'reveal_sessions'),
               ('SELECT, UPDATE',         'access_requests'),
               ('SELECT, UPDATE',         'provider_connections'),
               ('SELECT, INSERT, UPDATE', 'sync_jobs'),
               ('SELECT, UPDATE',         'gitops_observations'),
               ('SELECT, UPDATE',         'argocd_endpoints'),
               ('SELECT',                 'gitops_app_mappings'),
               ('SELECT',                 'schema_migrations')) AS needed (privileges, name)
 WHERE to_regclass(name) IS NOT NULL
\gexec

GRANT USAGE ON SCHEMA secrets_bridge_worker TO :"worker";
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA secrets_bridge_worker TO :"worker";
