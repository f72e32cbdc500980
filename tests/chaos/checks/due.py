"""What was deleted or flipped was due by the database's clock: each table by a rule that is written anew here.

A run compares with its cutoff, which is the moment its claim's transaction began, by PostgreSQL, less the table's age.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from tests.chaos.checks.transactions import Claim, claims, transactions, when
from tests.chaos.history import Change, History


class _Rule(NamedTuple):
    sweeper: str
    #: Whether a change is this sweeper's doing.
    did: Callable[[Change], bool]
    #: Whether its row was due at this cutoff.
    due: Callable[[Change, datetime], bool]


def _moment(change: Change, column: str) -> datetime:
    text = change.before[column]
    return when(text) if text else datetime.max.replace(tzinfo=when("1970-01-01T00:00:00+00:00").tzinfo)


def _flip(column: str, before: str, after: str) -> Callable[[Change], bool]:
    def did(change: Change) -> bool:
        return bool(change.op == "update" and change.before[column] == before and change.after[column] == after)

    return did


def _deleted(change: Change) -> bool:
    return change.op == "delete"


def _gave_up(change: Change) -> bool:
    states = change.before["polling_state"], change.after["polling_state"]
    return states[0] in {"queued", "active"} and states[1] == "applied_unverified"


def _ended(change: Change) -> bool:
    return change.before["expired_at"] is None and change.after["expired_at"] is not None


def _started(change: Change) -> bool:
    return bool(change.before["last_discover_status"] != "running" == change.after["last_discover_status"])


def _too_long(change: Change, cutoff: datetime) -> bool:
    twice = timedelta(seconds=2 * change.before["discover_interval_seconds"])
    return _moment(change, "last_discover_started_at") < cutoff - twice


RULES: Mapping[str, _Rule] = {
    "secret_wraps": _Rule("wraps-expired", _deleted, lambda row, cutoff: _moment(row, "expires_at") <= cutoff),
    "sessions": _Rule("sessions-expired", _deleted, lambda row, cutoff: _moment(row, "expires_at") <= cutoff),
    "secrets": _Rule(
        "secrets-stale",
        _flip("status", "present", "missing"),
        lambda row, cutoff: _moment(row, "last_seen_at") < cutoff,
    ),
    "agents": _Rule(
        "agents-stale", _flip("status", "active", "stale"), lambda row, cutoff: _moment(row, "last_seen_at") < cutoff
    ),
    "sync_jobs": _Rule(
        "jobs-recovery",
        _flip("status", "claimed", "expired"),
        lambda row, cutoff: _moment(row, "claim_expires_at") < cutoff,
    ),
    "reveal_sessions": _Rule(
        "reveal-sessions-expired", _ended, lambda row, cutoff: _moment(row, "expires_at") <= cutoff
    ),
    "gitops_observations": _Rule("gitops-timeout", _gave_up, lambda row, cutoff: _moment(row, "timeout_at") < cutoff),
    "access_requests": _Rule(
        "cross-team-fill-window-expired",
        _flip("status", "pending_values", "expired"),
        lambda row, cutoff: _moment(row, "fill_expires_at") <= cutoff,
    ),
    "provider_connections": _Rule("discover-stuck", _flip("last_discover_status", "running", "failure"), _too_long),
}
#: How long ago a row must be over.
AGES: Mapping[str, timedelta] = {"secrets-stale": timedelta(hours=24), "agents-stale": timedelta(minutes=5)}
#: Who else changes rows of a table, and in which way.
OTHERS: Mapping[tuple[str, str], Callable[[Change], bool]] = {
    ("sync_jobs", "discover-scheduler"): lambda change: change.op == "insert",
    ("provider_connections", "discover-scheduler"): _started,
    ("provider_connections", "jobs-recovery"): _flip("last_discover_status", "running", "failure"),
    ("gitops_observations", "gitops-poller"): lambda change: not _gave_up(change),
}


def only_what_is_due(history: History) -> Iterator[str]:
    """Yield each run that has not compared with the database's clock, and what was changed that was not due."""
    known = claims(history)
    for claim in known.values():
        cutoff = claim.change.began - AGES.get(claim.name, timedelta(0))
        if claim.cutoff != cutoff:
            yield f"run {claim.run} of {claim.name} compared with {claim.cutoff}, by the database it was {cutoff}"
    for transaction in transactions(history):
        for run in transaction.runs:
            if run in known:
                for change in transaction.swept:
                    yield from _wrong(known[run], change)


def _wrong(claim: Claim, change: Change) -> Iterator[str]:
    rule = RULES[change.relation]
    what = f"run {claim.run} of {claim.name}: a row of {change.relation}"
    if claim.name != rule.sweeper:
        others = OTHERS.get((change.relation, claim.name))
        if others is None or not others(change):
            yield f"{what} is not its to change"
    elif not rule.did(change):
        yield f"{what} was changed in another way than its own"
    elif not rule.due(change, claim.cutoff):
        yield f"{what} was not due at {claim.cutoff}"
