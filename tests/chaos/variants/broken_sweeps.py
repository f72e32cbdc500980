"""Defects of a worker, each a function that patches this process."""

from __future__ import annotations

import importlib
import re
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from psycopg.rows import dict_row

from app.core.errors import NotDue, Reason
from app.notify import outbox
from app.storage import postgres
from app.storage.settings import DatabaseSettings
from app.sweeping import actor, lock, reports, runner
from app.sweeping.ledger import claims, failures, runs, transactions

if TYPE_CHECKING:
    from psycopg import Cursor

#: Seconds for which a run that has failed waits for its successor to begin, before it writes that down.
SLOW = 10.0
_SUCCESSOR = "SELECT FROM secrets_bridge_worker.sweep_state WHERE name = %s AND token > %s"


def _changed(module: Any, name: str, pattern: str, by: str) -> None:
    text = getattr(module, name)
    broken = re.sub(pattern, lambda _match: by, text, flags=re.DOTALL)
    assert broken != text, f"{name} is not what it was when this defect was written"
    setattr(module, name, broken)


def slow_to_write_down() -> None:
    """Write a failure down once the successor has begun; no defect."""
    write = runner._Attempt.write_failure

    def slow(attempt: Any, failure: Any) -> None:
        if attempt.newest is not None:
            _await_successor(attempt.newest.claimed)
        write(attempt, failure)

    setattr(runner._Attempt, "write_failure", slow)  # noqa: B010 - of a type of its own


def _await_successor(claimed: runs.Claimed) -> None:
    until = time.monotonic() + SLOW
    with postgres.connect(DatabaseSettings.read()) as connection:
        while time.monotonic() < until:
            if connection.execute(_SUCCESSOR, [claimed.name, claimed.claim.token]).fetchone() is not None:
                return
            time.sleep(0.05)


def no_fence() -> None:
    """Neither hold the fence's row nor look whose token is in it."""
    _changed(runs, "FENCE", r"AND token = %\(token\)s FOR SHARE", "AND %(token)s IS NOT NULL")


def no_slot_mark() -> None:
    """Let every tick claim its slot, done or not, whatever Redis knew."""
    _changed(claims, "CLAIM", r"WHERE \(state\.last_slot <.*?outcome = 'success'\)", "WHERE true")
    _changed(runs, "OPEN", r"ON CONFLICT.*?DO NOTHING", "")
    _changed(lock, "_RELEASE", r"redis\.call\('SET', KEYS\[2\].*?ARGV\[3\]\)", "")


def same_token() -> None:
    """Claim without a new token."""
    _changed(claims, "CLAIM", r"token = state\.token \+ 1", "token = state.token")


def gives_back_anything() -> None:
    """Give a slot back without looking whose it is, a while after the lock was."""
    slow_to_write_down()
    _changed(failures, "GIVE_BACK", r"AND token = %\(token\)s", "AND %(token)s IS NOT NULL")


def covers_too_much() -> None:
    """Cover one slot more than there are."""
    covered = claims._covered
    claims._covered = lambda *words: covered(*words) + 1


def workers_clock() -> None:
    """Take this machine's time for the database's, ten minutes ahead."""
    begun = transactions.begun
    ahead = timedelta(minutes=10)
    transactions.begun = lambda cursor: begun(cursor)._replace(now=datetime.now(UTC) + ahead)


def releases_anything() -> None:
    """Delete the lock's key without looking whose it is."""
    _changed(lock, "_RELEASE", r"if redis\.call\('GET', KEYS\[1\]\) ~= ARGV\[1\] then return 0 end\n", "")


def retries_inside() -> None:
    """Try a run that failed once more at once, under the same lock."""
    run = actor.SweepActor._run

    def again(self: actor.SweepActor, tick: lock.Tick) -> Any:
        try:
            return run(self, tick)
        except runner.RunFailed as error:
            error.write_down()
            return run(self, tick)

    setattr(actor.SweepActor, "_run", again)  # noqa: B010


def stuck() -> None:
    """Have runs of one sweeper never begin, although their lock is held; no defect."""
    run = runner.Runner.run

    def waiting(self: Any, sweeper: Any, settings: Any, tick: Any) -> Any:
        if sweeper.name == "wraps-expired":
            threading.Event().wait()
        return run(self, sweeper, settings, tick)

    setattr(runner.Runner, "run", waiting)  # noqa: B010


def never() -> None:
    """Take each tick of one sweeper for one that is not due."""
    run = runner.Runner.run

    def not_due(self: Any, sweeper: Any, settings: Any, tick: Any) -> Any:
        if sweeper.name == "agents-stale":
            raise NotDue(Reason.SUPERSEDED)
        return run(self, sweeper, settings, tick)

    setattr(runner.Runner, "run", not_due)  # noqa: B010


def renews_without_progress() -> None:
    """Renew the lock of a run that is stuck, for as long as its process lives."""
    stuck()
    setattr(lock.Lease, "idle", lambda _lease, _longest: False)  # noqa: B010


def _wraps(**statements: str) -> None:
    module: Any = importlib.import_module("actors.wraps_expired")
    module.PAGES = module.PAGES._replace(**statements)


def early_delete() -> None:
    """Delete wraps that have five seconds left."""
    pages = importlib.import_module("actors.wraps_expired").PAGES
    early = {name: getattr(pages, name) for name in ("whole", "listed", "gentle", "look")}
    soon = "%(cutoff)s::timestamptz + interval '5 s'"
    _wraps(**{name: text.replace("%(cutoff)s", soon) for name, text in early.items()})


def unguarded_write() -> None:
    """Find wraps that are due, and delete them a while later, without judging them again."""
    found = """
WITH due AS MATERIALIZED (
    SELECT id, ctid FROM secret_wraps
     WHERE ctid >= %(start)s::tid AND ctid < %(stop)s::tid AND (expires_at <= %(cutoff)s) IS TRUE
), later AS MATERIALIZED (
    SELECT pg_sleep(CASE WHEN EXISTS (SELECT FROM due) THEN 0.4 ELSE 0 END)
)"""
    delete = "DELETE FROM secret_wraps WHERE EXISTS (SELECT FROM later) AND id IN (SELECT id FROM due)"
    listed = f"""{found}, changed AS ({delete} RETURNING 1)
SELECT (SELECT count(*) FROM due) AS found, (SELECT max(ctid)::text FROM due) AS last, 0 AS skipped_locked,
       count(*) AS changed, %(limit)s AS most
  FROM changed
"""
    _wraps(whole=f"{found} {delete}", listed=listed.replace(", %(limit)s AS most", ""))


def miscount() -> None:
    """Count one row too many in each step."""
    columns = runs.Progress.columns

    def one_more(progress: runs.Progress) -> dict[str, object]:
        return {**columns(progress), "changed": progress.changed + progress.batches}

    setattr(runs.Progress, "columns", one_more)  # noqa: B010


def forgotten_counts() -> None:
    """Say nothing of what runs had changed that were cut short."""
    reports.interrupted_events = lambda *_words: []


def event_apart() -> None:
    """Write events on a connection of their own."""
    write = outbox.Outbox.write

    def apart(self: outbox.Outbox, cursor: Cursor[Any], events: Iterable[Any], *, without: str = "") -> Any:
        del cursor
        with postgres.connect(DatabaseSettings.read()) as connection:
            return write(self, connection.cursor(row_factory=dict_row), events, without=without)

    setattr(outbox.Outbox, "write", apart)  # noqa: B010


def polls_twice() -> None:
    """Count each poll as two."""
    module: Any = importlib.import_module("actors.gitops_poller")
    _changed(module, "WRITE", r"2147483646\) \+ 1", "2147483645) + 2")
