"""What keeps an overdue sweeper from its runs, as far as it can be seen while it lasts; the ledger has no row of it.

One row an episode, however many replicas see it: whoever gets the lock writes for all, and a row that was seen a moment
ago is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, LiteralString

if TYPE_CHECKING:
    from psycopg import Cursor


class Obstacle(StrEnum):
    """Why nobody runs a sweeper."""

    NO_SCHEDULER = "no_scheduler"
    #: Schedulers live, and none has sent a tick for long.
    NO_TICKS = "no_ticks"
    REDIS_AWAY = "redis_away"
    #: Its lock is held by somebody who is no run of ours.
    FOREIGN_LOCK = "foreign_lock"
    #: Somebody holds its table in PostgreSQL: not even a failed run can be written down then.
    TABLE_LOCKED = "table_locked"


#: How long an episode may be unseen and still be the same one, and how old a sight may be that nobody repeats.
EPISODE, FRESH = timedelta(seconds=30), timedelta(seconds=5)

_LOCK: LiteralString = """
SELECT pg_try_advisory_xact_lock(hashtextextended('secrets_bridge_worker.sweep_obstacle', 0)) AS ours
"""
_SEE: LiteralString = """
WITH known AS (
    SELECT id, seen_at FROM secrets_bridge_worker.sweep_obstacle
     WHERE name = %(name)s AND kind = %(kind)s AND seen_at > clock_timestamp() - %(episode)s
     ORDER BY seen_at DESC LIMIT 1
), renewed AS (
    UPDATE secrets_bridge_worker.sweep_obstacle AS row SET seen_at = clock_timestamp()
      FROM known WHERE row.id = known.id AND known.seen_at < clock_timestamp() - %(fresh)s
)
SELECT id FROM known
"""
_OPEN: LiteralString = """
INSERT INTO secrets_bridge_worker.sweep_obstacle (name, kind, began_at, seen_at)
VALUES (%(name)s, %(kind)s, clock_timestamp(), clock_timestamp())
"""
_PRUNE: LiteralString = """
DELETE FROM secrets_bridge_worker.sweep_obstacle WHERE seen_at < clock_timestamp() - %(retention)s
"""
_CURRENT: LiteralString = """
SELECT name, kind, min(began_at) AS began_at FROM secrets_bridge_worker.sweep_obstacle
 WHERE seen_at > clock_timestamp() - %(episode)s AND name = ANY (%(names)s) GROUP BY name, kind
"""


def see(cursor: Cursor[dict[str, Any]], seen: Mapping[str, Obstacle], retention: timedelta) -> None:
    """Write down what is seen now, in a transaction of its own; nothing while another replica does."""
    if not (cursor.execute(_LOCK).fetchone() or {})["ours"]:
        return
    for name, obstacle in seen.items():
        words = {"name": name, "kind": obstacle.value, "fresh": FRESH, "episode": EPISODE}
        if cursor.execute(_SEE, words).fetchone() is None:
            cursor.execute(_OPEN, words)
            cursor.execute(_PRUNE, {"retention": retention})


def current(cursor: Cursor[dict[str, Any]], names: list[str]) -> dict[tuple[str, str], datetime]:
    """Return since when each obstacle is there that was seen a moment ago, by sweeper and kind."""
    rows = cursor.execute(_CURRENT, {"names": names, "episode": EPISODE})
    return {(row["name"], row["kind"]): row["began_at"] for row in rows}
