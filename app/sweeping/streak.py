"""Streaks: attempts of a sweeper that failed since its last success, and when people are told of them.

A streak is counted, and what is told of it decided, under the sweeper's row in `sweep_state`, in the transaction that
stores the event: so one of any number of replicas tells it, and whoever is killed before its commit has told nothing.
Times are the database's. A streak is told once it is long enough, again after each while that it lasts, and its end is
told if it was. Which of that was done is in the row, whatever the settings are by then.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from app.storage.postgres import only_row

if TYPE_CHECKING:
    from psycopg import Cursor

# A row that counts failures and does not say since when was written by a release that told the first of them. What lies
# ahead was written while the database's clock was, and would put a reminder off until then.
COUNT_FAILURE = """
INSERT INTO secrets_bridge_worker.sweep_state AS state
       (name, last_slot, previous_slot, token, failures, failing_since)
VALUES (%(name)s, 'epoch', 'epoch', 0, 1, now())
    ON CONFLICT (name) DO UPDATE
   SET failures = state.failures + 1,
       failing_since = CASE WHEN state.failures = 0 THEN now() ELSE least(state.failing_since, now()) END,
       reported_at = CASE WHEN state.failures = 0 THEN NULL
                          WHEN state.failing_since IS NULL OR state.reported_at > now() THEN now()
                          ELSE state.reported_at END
RETURNING failures, failing_since, reported_at, now() AS now
"""

REPORT = "UPDATE secrets_bridge_worker.sweep_state SET reported_at = now() WHERE name = %(name)s"


class Telling(NamedTuple):
    """When people are told of a streak: from so many failures on, and again after so long, unless that is 0."""

    failures_before: int = 1
    remind_after: timedelta = timedelta(hours=24)


class Streak(NamedTuple):
    """Failed attempts since the last success, since when, and when people were last told of it, if they were."""

    failures: int = 0
    since: datetime | None = None
    reported_at: datetime | None = None

    @property
    def told(self) -> bool:
        """Whether people know of it, and are to be told of its end."""
        return self.failures > 0 and (self.reported_at is not None or self.since is None)

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """Return the streak of a row of `sweep_state`."""
        return cls(row["failures"], row["failing_since"], row["reported_at"])

    def due(self, telling: Telling, now: datetime) -> bool:
        """Return whether people are to be told of it now, for the first time or once more."""
        if self.reported_at is None:
            return self.failures >= telling.failures_before
        return bool(telling.remind_after) and now - self.reported_at >= telling.remind_after


class Counted(NamedTuple):
    """A streak with the failure that was just counted, and whether it is to be told in this transaction."""

    streak: Streak
    tell: bool


def count_failure(cursor: Cursor[dict[str, Any]], name: str, telling: Telling) -> Counted:
    """Count a failure of a sweeper, and reserve it to this transaction to tell of it, if that is due."""
    row = only_row(cursor.execute(COUNT_FAILURE, {"name": name}))
    streak = Streak.of(row)
    tell = streak.due(telling, row["now"])
    if tell:
        cursor.execute(REPORT, {"name": name})
    return Counted(streak, tell)
