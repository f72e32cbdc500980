-- Indexes by which the worker finds what is due without reading a table that is large. They are not needed: without them
-- a sweep reads the table page by page, in shares (SB_WORKER_SWEEP_PAGES). `sb-worker check` names the one that would
-- help. The tables are the api's, so that whoever owns them decides; each statement is to be executed by itself, outside
-- of a transaction, and blocks nobody. A sweep uses its index from its next run on.

CREATE INDEX CONCURRENTLY secret_wraps_worker_idx ON secret_wraps (expires_at);
CREATE INDEX CONCURRENTLY secrets_worker_idx ON secrets (last_seen_at) WHERE (status = 'present'::text);
CREATE INDEX CONCURRENTLY sync_jobs_worker_idx ON sync_jobs (claim_expires_at) WHERE (status = 'claimed'::text);
