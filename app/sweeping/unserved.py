"""What the api has and this worker does not serve: told at boot, and by `sb-worker check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from psycopg.rows import scalar_row

from app.sweeping.scans.tables import is_there
from app.sweeping.sweeper import Sweeper, SweeperSettings

if TYPE_CHECKING:
    from psycopg import Connection

Pair = tuple[Sweeper[Any], SweeperSettings]

#: The newest version of the api's schema that this worker knows the features of.
KNOWN_SCHEMA = 38

# Another tool's table of this name has other columns.
_READABLE = """
SELECT count(*) > 0 FROM pg_attribute
 WHERE attrelid = to_regclass('schema_migrations') AND attname = 'version' AND NOT attisdropped
   AND atttypid IN ('int4'::regtype, 'int8'::regtype) AND has_column_privilege(attrelid, attnum, 'SELECT')
"""
_VERSION = "SELECT max(version) FROM schema_migrations"
_THERE: LiteralString = f"""
SELECT name FROM unnest(%(names)s::text[], %(relations)s::text[]) AS off (name, relation)
 WHERE {is_there("relation")}
"""  # noqa: S608 - all its parts are literals


class Unserved(NamedTuple):
    """A version of the api's schema that is newer than ours knows, or None; and sweepers that are off, by how to switch
    them on, although their table is there.
    """  # noqa: D205

    version: int | None
    off: dict[str, str]


def unserved(connection: Connection[Any], pairs: Sequence[Pair]) -> Unserved:
    """Look what of the api is not served by these sweepers with their settings."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        version = None
        if cursor.execute(_READABLE).fetchone():
            version = cursor.execute(_VERSION).fetchone()
        off = {sweeper.name: (sweeper.rests_without(own), own.switch) for sweeper, own in pairs if not own.enabled}
        relations = [relation for relation, _ in off.values()]
        there = cursor.execute(_THERE, {"names": list(off), "relations": relations}).fetchall()
    newer = version if version and version > KNOWN_SCHEMA else None
    return Unserved(newer, {name: off[name][1] for name in off if name in there})
