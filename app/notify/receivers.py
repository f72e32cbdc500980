"""Receivers in PostgreSQL: breaker, pace, dedup windows, and whether one is switched off.

A receiver's row in `notification_target` is locked while something is decided about it. Times in it that lie further
ahead than they can were written while the database's clock was ahead; they are put right when they are read, or all
that waits would die unsent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from app.core.errors import LONGEST_RETRY_AFTER
from app.notify.policy import FIRST_OFF_PROBES, LATER_OFF_PROBES, LONGEST_BACKOFF, LONGEST_COOLDOWN, Health, Policy
from app.storage.postgres import only_row

if TYPE_CHECKING:
    from psycopg import Cursor

    from app.notify.settings import NotificationSettings

log = structlog.get_logger("notification")

#: A mute that begins further ahead of the clock than this was made while the clock was ahead.
MUTE_AHEAD = timedelta(minutes=1)

ADD = """
INSERT INTO secrets_bridge_worker.notification_target AS target (name) VALUES (%(name)s)
    ON CONFLICT (name) DO NOTHING
"""
# Columns are named: with a star, one that a newer release adds would break the statement where it is prepared.
LOCK = """
SELECT failures, trips, rests_until, probe_until, catch_up, paced_until, off_fingerprint, off_reason,
       CASE WHEN off_fingerprint IS NOT NULL THEN coalesce(off_until, off_at) END AS off_until,
       muted_at, muted_until, now() AS now
  FROM secrets_bridge_worker.notification_target WHERE name = %(name)s FOR UPDATE
"""
PUT_RIGHT = """
UPDATE secrets_bridge_worker.notification_target
   SET rests_until = %(rests_until)s, probe_until = %(probe_until)s, paced_until = %(paced_until)s,
       off_until = %(off_until)s
 WHERE name = %(name)s
"""
# A mute that was made while the clock was ahead lasts as long as it was to last.
PUT_MUTE_RIGHT = """
UPDATE secrets_bridge_worker.notification_target
   SET muted_at = now(), muted_until = now() + (muted_until - muted_at)
 WHERE name = %(name)s
RETURNING muted_until
"""

WINDOWS = """
SELECT key, until, now() AS now FROM secrets_bridge_worker.notification_hold
 WHERE target = %(name)s AND until > now()
"""
PUT_WINDOWS_RIGHT = """
UPDATE secrets_bridge_worker.notification_hold SET until = now() + %(repeat)s
 WHERE target = %(name)s AND until > now() + %(repeat)s
"""
OPEN_WINDOWS = """
INSERT INTO secrets_bridge_worker.notification_hold (target, key, until)
SELECT %(name)s, key, now() + %(repeat)s FROM unnest(%(keys)s::text[]) AS sent (key)
    ON CONFLICT (target, key) DO UPDATE SET until = excluded.until
"""
END_WINDOWS = """
DELETE FROM secrets_bridge_worker.notification_hold
 WHERE target = %(name)s AND EXISTS (SELECT FROM unnest(%(ended)s::text[]) AS ended (beginning)
                                      WHERE starts_with(key, beginning))
"""
RELEASE = """
UPDATE secrets_bridge_worker.notification_delivery AS delivery SET due_at = now()
  FROM secrets_bridge_worker.notification_event AS event
 WHERE event.id = event_id AND target = %(name)s AND state = 'pending' AND attempts = 0 AND due_at > now()
   AND component || '|' || kind || '|' = ANY (%(ended)s)
"""

RESERVE_SLOT = """
UPDATE secrets_bridge_worker.notification_target
   SET paced_until = coalesce(%(paced_until)s, paced_until),
       probe_until = CASE WHEN %(probing)s THEN now() + %(lease)s ELSE probe_until END,
       off_until = CASE WHEN off_fingerprint IS NULL THEN NULL
                        WHEN now() - off_at < %(later)s THEN now() + %(first)s ELSE now() + %(later)s END,
       catch_up = catch_up AND NOT %(caught_up)s
 WHERE name = %(name)s
RETURNING probe_until, off_until
"""
# Only what is still as it was reserved: another process may have gone on from there.
RESTORE_SLOT = """
UPDATE secrets_bridge_worker.notification_target
   SET probe_until = CASE WHEN probe_until = %(probe_until)s THEN NULL ELSE probe_until END,
       off_until = CASE WHEN off_until = %(off_until)s THEN %(off_before)s ELSE off_until END,
       paced_until = paced_until - %(pace)s,
       catch_up = catch_up OR %(catch_up)s
 WHERE name = %(name)s
"""
CLOSE_WINDOWS = """
DELETE FROM secrets_bridge_worker.notification_hold
 WHERE target = %(name)s AND key = ANY (%(opened)s) AND until = %(until)s
"""
RESTORE_WINDOWS = """
INSERT INTO secrets_bridge_worker.notification_hold (target, key, until)
SELECT %(name)s, key, until FROM unnest(%(keys)s::text[], %(untils)s::timestamptz[]) AS before (key, until)
    ON CONFLICT (target, key) DO NOTHING
"""
SAVE = """
UPDATE secrets_bridge_worker.notification_target
   SET failures = %(failures)s, trips = %(trips)s, rests_until = %(rests_until)s, probe_until = %(probe_until)s,
       catch_up = %(catch_up)s
 WHERE name = %(name)s
"""
SWITCH_OFF = """
UPDATE secrets_bridge_worker.notification_target
   SET off_fingerprint = %(fingerprint)s, off_reason = %(reason)s, off_at = now(), off_until = now() + %(first)s,
       catch_up = true, probe_until = NULL
 WHERE name = %(name)s
"""
SWITCH_ON = """
UPDATE secrets_bridge_worker.notification_target
   SET off_fingerprint = NULL, off_reason = '', off_at = NULL, off_until = NULL, failures = 0, trips = 0,
       rests_until = NULL, probe_until = NULL
 WHERE name = ANY (%(names)s) AND off_fingerprint IS NOT NULL
RETURNING name
"""


class Reserved(NamedTuple):
    """What a claim has used up of a receiver before anything is sent, so that a process that is killed sends no more.

    Given back with what it was used up for: `pace` for each message, the probe, and the dedup windows.
    """

    pace: timedelta = timedelta(0)
    probe_until: datetime | None = None
    off_until: datetime | None = None
    off_before: datetime | None = None
    catch_up: bool = False
    #: Keys of the windows that were opened, until when; and the windows that it ended or opened anew, as they were.
    opened: tuple[str, ...] = ()
    until: datetime | None = None
    before: Mapping[str, datetime] = {}


class Receiver(NamedTuple):
    """A receiver's row, locked: its health, the database's time, and what it was switched off for, empty if not."""

    health: Health
    now: datetime
    off_fingerprint: str = ""


def lock(cursor: Cursor[dict[str, Any]], name: str, policy: Policy, settings: NotificationSettings) -> Receiver:
    """Lock a receiver's row until the transaction ends, and return what is in it."""
    row = cursor.execute(LOCK, {"name": name}).fetchone()
    if row is None:
        cursor.execute(ADD, {"name": name})
        row = only_row(cursor.execute(LOCK, {"name": name}))
    now = row["now"]
    row |= _put_right(cursor, name, row, _farthest(now, policy, settings))
    if row["muted_at"] is not None and (ahead := row["muted_at"] - now) > MUTE_AHEAD:
        row |= only_row(cursor.execute(PUT_MUTE_RIGHT, {"name": name}))
        tell_ahead(name, ["muted_until"], ahead)
    elif row["muted_at"] is None and row["muted_until"] is not None:  # unmuted, maybe by a clock that was ahead
        row["muted_until"] = min(row["muted_until"], now)
    health = Health(
        row["failures"],
        row["trips"],
        row["rests_until"],
        row["probe_until"],
        row["catch_up"],
        row["paced_until"],
        row["off_until"],
        row["muted_until"],
    )
    return Receiver(health, now, row["off_fingerprint"] or "")


def _farthest(now: datetime, policy: Policy, settings: NotificationSettings) -> dict[str, datetime]:
    """Return the latest that each time in a receiver's row can be."""
    rest = max(settings.cooldown, LONGEST_COOLDOWN, LONGEST_BACKOFF, timedelta(seconds=LONGEST_RETRY_AFTER))
    return {
        "rests_until": now + rest,
        "probe_until": now + settings.lease,
        "paced_until": now + policy.pace * policy.burst,
        "off_until": now + LATER_OFF_PROBES,
    }


def _put_right(
    cursor: Cursor[dict[str, Any]], name: str, row: Mapping[str, Any], farthest: Mapping[str, datetime]
) -> Mapping[str, Any]:
    late = {what: row[what] - most for what, most in farthest.items() if row[what] is not None and row[what] > most}
    if not late:
        return {}
    right = {what: most if what in late else row[what] for what, most in farthest.items()}
    cursor.execute(PUT_RIGHT, {"name": name, **right})
    tell_ahead(name, sorted(late), max(late.values()))
    return right


def tell_ahead(name: str, times: Iterable[str], ahead: timedelta) -> None:
    """Log that times of a receiver were put right. They are right from then on, so this comes once a fault."""
    log.error("times too far ahead; the database's clock was wrong", sink=name, times=list(times), ahead=ahead)


def windows(cursor: Cursor[dict[str, Any]], name: str, repeat: timedelta) -> dict[str, datetime]:
    """Return the ends of a receiver's dedup windows by their keys."""
    rows = cursor.execute(WINDOWS, {"name": name}).fetchall()
    if late := [row["until"] - row["now"] - repeat for row in rows if row["until"] > row["now"] + repeat]:
        cursor.execute(PUT_WINDOWS_RIGHT, {"name": name, "repeat": repeat})
        tell_ahead(name, ["until"], max(late))
    return {row["key"]: min(row["until"], row["now"] + repeat) for row in rows}


def turn_windows(
    cursor: Cursor[dict[str, Any]], name: str, opened: Iterable[str], ended: Iterable[str], repeat: timedelta
) -> None:
    """Open the dedup windows of these keys; end those of keys with these beginnings, and release what they held."""
    if closing := list(ended):
        cursor.execute(END_WINDOWS, {"name": name, "ended": closing})
        cursor.execute(RELEASE, {"name": name, "ended": closing})
    if keys := list(opened):
        cursor.execute(OPEN_WINDOWS, {"name": name, "keys": keys, "repeat": repeat})


def reserve(  # noqa: PLR0913 - what one message uses up
    cursor: Cursor[dict[str, Any]],
    name: str,
    *,
    paced_until: datetime | None,
    probing: bool,
    caught_up: bool,
    lease: timedelta,
) -> tuple[datetime | None, datetime | None]:
    """Reserve the receiver for a message that is about to be sent: its pace, its probe. Return the probe's times."""
    query = {"name": name, "paced_until": paced_until, "probing": probing, "caught_up": caught_up, "lease": lease}
    row = only_row(cursor.execute(RESERVE_SLOT, {**query, "first": FIRST_OFF_PROBES, "later": LATER_OFF_PROBES}))
    return row["probe_until"], row["off_until"]


def give_back(cursor: Cursor[dict[str, Any]], name: str, reserved: Reserved, fresh: int) -> None:
    """Give back what was reserved for messages that were not sent, so many of them `fresh`."""
    slot = {key: value for key, value in reserved._asdict().items() if key.endswith(("_until", "_before"))}
    used = {"pace": reserved.pace * fresh, "catch_up": reserved.catch_up and fresh > 0}
    cursor.execute(RESTORE_SLOT, {"name": name, **slot, **used})
    if fresh and (reserved.opened or reserved.before):
        windows = {"keys": list(reserved.before), "untils": list(reserved.before.values())}
        cursor.execute(CLOSE_WINDOWS, {"name": name, "opened": list(reserved.opened), "until": reserved.until})
        cursor.execute(RESTORE_WINDOWS, {"name": name, **windows})


def save(cursor: Cursor[dict[str, Any]], name: str, health: Health) -> None:
    """Write down what attempts have changed of the health of a receiver whose row is locked."""
    cursor.execute(SAVE, {"name": name, **health._asdict()})


def switch_off(cursor: Cursor[dict[str, Any]], name: str, fingerprint: str, reason: str) -> None:
    """Switch a receiver off until its configuration changes, or a probe gets through."""
    query = {"name": name, "fingerprint": fingerprint, "reason": reason}
    cursor.execute(SWITCH_OFF, {**query, "first": FIRST_OFF_PROBES})


def switch_on(cursor: Cursor[dict[str, Any]], names: Iterable[str]) -> list[str]:
    """Switch receivers on again; return those that were off."""
    return [row["name"] for row in cursor.execute(SWITCH_ON, {"names": list(names)})]
