"""Which provider connections have an open job: said once, for the sweeps that start them and that end them."""

from __future__ import annotations

from typing import LiteralString

#: Selects the ids of connections with an open discover job, as `connection_key` writes them. A claimed job is open even
#: when its claim ran out. The api reads ids in braces, without hyphens and as URNs as well.
OPEN: LiteralString = """
    SELECT translate(regexp_replace(lower(payload ->> 'connection_id'), '^urn:uuid:', ''), '{}-', '') AS id
      FROM sync_jobs
     WHERE job_type = 'discover' AND (status = 'queued' OR status = 'claimed') AND payload ->> 'connection_id' <> ''
"""


def connection_key(column: LiteralString) -> LiteralString:
    """Return the SQL that writes an id as OPEN does."""
    return f"translate({column}::text, '-', '')"
