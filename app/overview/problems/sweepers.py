"""What is wrong with sweepers: overdue, failing, kept by a stranger's lock, paused and forgotten, behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from types import MappingProxyType

from app.overview.model import Overview, Problem, State, SweeperView
from app.overview.sources.parts import WAITED
from app.overview.words import length, listed

#: A pause that outlasts this, and three intervals, is taken for forgotten.
PAUSED_FOR = timedelta(hours=1)
#: Intervals by which the oldest due row may be older than it should ever get; and the least time for that.
INTERVALS_BEHIND, LEAST_BEHIND = 3, timedelta(minutes=1)
#: How long a pass through a large table may take in all before its rows wait for too long.
PASS_WITHIN = timedelta(hours=1)
_WAITED = "see who held its table in the server's log (log_lock_waits), or what loads it; it is tried again by itself"
_REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "42501": "`sb-worker check` prints the GRANT that is missing",
        "42P01": "`sb-worker check` says which table or column is missing; the api's migration brings it",
        "42703": "`sb-worker check` says which table or column is missing; the api's migration brings it",
        "25006": "let DATABASE_URL lead to the primary",
        "53300": "PostgreSQL has no connection left: raise max_connections, or lower DATABASE_MAX_CONNS",
        "53100": "PostgreSQL's disk is full",
        **dict.fromkeys(WAITED, _WAITED),
    }
)
_AWAY = ("OperationalError", "PoolTimeout", "AdminShutdown", "CannotConnectNow", "ConnectionException")


def overdue(overview: Overview, *, explained: bool) -> Iterator[Problem]:
    """Yield sweepers that owe a run; one problem for all that have no cause of their own.

    `explained`: something else that was found keeps all of them from running.
    """
    owing = []
    for one in overview.sweepers:
        if one.overdue_since is None or one.failures or (one.holder and not one.blockers):
            continue
        if one.blockers:
            text = f"overdue by {length(overview.now - one.overdue_since)}; {_held_tables([one])} is held"
            yield Problem(one.name, text, "see below by whom")
        else:
            owing.append(one)
    if not owing:
        return
    longest = max(overview.now - one.overdue_since for one in owing if one.overdue_since)
    by_itself = "`sb-worker why " + owing[0].name + "` says what is known; see the workers' log"
    remedy = "follows from what stands above; it ends by itself" if explained else by_itself
    many = "up to " * (len(owing) > 1)
    yield Problem(listed([one.name for one in owing]), f"nobody runs it, overdue by {many}{length(longest)}", remedy)


def held(overview: Overview) -> Iterator[Problem]:
    """Yield overdue sweepers whose lock is held: by a run that does not end, or by somebody who is no run of ours."""
    for one in overview.sweepers:
        if one.holder is None or one.overdue_since is None or one.failures or one.blockers:
            continue
        late = f"; overdue by {length(overview.now - one.overdue_since)}"
        since = f" for {length(overview.now - one.holder.since)}" if one.holder.since else ""
        if one.holder.worker:
            text = f"its run in {one.holder.worker} has not ended{since}{late}"
            yield Problem(one.name, text, "see that process's log; without progress it loses its lock by itself")
            continue
        left = f", and runs out in {length(one.holder.expires_in)} unless renewed" if one.holder.expires_in else ""
        text = f"its lock is held{since} by somebody who is no run of ours{left}{late}"
        yield Problem(one.name, text, f"unless a Go worker runs it: `sb-worker unlock {one.name}`")


def failing(overview: Overview) -> Iterator[Problem]:
    """Yield sweepers whose last attempts failed, those with the same error together."""
    alike: dict[tuple[str, str], list[SweeperView]] = {}
    for one in overview.sweepers:
        if one.failures and one.state in {State.ON, State.BRAKED}:  # to lift a hold a run is tried all the same
            alike.setdefault((one.error, one.sqlstate), []).append(one)
    for (error, sqlstate), sweepers in alike.items():
        since = min((one.failing_since for one in sweepers if one.failing_since), default=None)
        most = max(one.failures for one in sweepers)
        for_how_long = f", for {length(overview.now - since)}" if since else ""
        text = f"fails ({error or 'not in the ledger any more'}), {most:,} in a row{for_how_long}"
        yield Problem(listed([one.name for one in sweepers]), text, _remedy(error, sqlstate, sweepers))


def _remedy(error: str, sqlstate: str, sweepers: list[SweeperView]) -> str:
    if sqlstate in WAITED and (tables := _held_tables(sweepers)):
        return f"{tables} is held: see below by whom"
    if sqlstate in _REMEDIES:
        return _REMEDIES[sqlstate]
    if error.startswith(_AWAY) or sqlstate.startswith(("08", "57P")):
        return "PostgreSQL was away; it is tried again by itself. Else `sb-worker check`"
    return f"`sb-worker why {sweepers[0].name}`, and the line `scheduler: task failed` in the workers' log"


def _held_tables(sweepers: list[SweeperView]) -> str:
    return listed(sorted({blocker.table or "rows" for one in sweepers for blocker in one.blockers}))


def paused(overview: Overview) -> Iterator[Problem]:
    """Yield sweepers that are paused; a pause that seems to be forgotten is a problem, any other worth a note."""
    for one in overview.sweepers:
        if one.state is not State.PAUSED:
            continue
        since = max(timedelta(0), overview.now - one.since) if one.since else timedelta(0)
        left = f", for another {length(one.until - overview.now)}" if one.until else ""
        forgotten = since > max(PAUSED_FOR, one.interval * 3)
        asked = "; is it forgotten?" if forgotten else ""
        text = f"paused for {length(since)}{left} ({one.reason or 'no reason given'}){asked}"
        yield Problem(one.name, text, f"`sb-worker resume {one.name}`", note=not forgotten)


def braked(overview: Overview) -> Iterator[Problem]:
    """Yield sweepers that stopped before they changed anything, and wait for somebody's word."""
    for one in overview.sweepers:
        if one.state is State.BRAKED:
            since = f" {length(overview.now - one.since)} ago" if one.since else ""
            text = f"stopped{since} before it changed anything ({one.reason})"
            approve = f"if it is right: `sb-worker sweep {one.name} --approve`"
            yield Problem(one.name, text, f"see `sb-worker why {one.name}`; {approve}")


def behind(overview: Overview) -> Iterator[Problem]:
    """Yield sweepers with rows that are due for longer than a few intervals, although they run."""
    for one in overview.sweepers:
        if one.backlog is None or one.backlog.since is None or one.state is not State.ON:
            continue
        if one.failures or one.overdue_since is not None:  # then that is why, and is told
            continue
        lag = overview.now - one.backlog.since
        if lag > max(one.interval * INTERVALS_BEHIND, LEAST_BEHIND):
            rows = f"{'more than ' * one.backlog.more}{one.backlog.rows:,}"
            yield Problem(
                one.name,
                f"{rows} {'row is' if one.backlog.rows == 1 else 'rows are'} due, the oldest for {length(lag)}",
                f"if it runs well, wait, or raise SB_WORKER_SWEEP_BUDGET; `sb-worker why {one.name}`",
            )


def passes(overview: Overview) -> Iterator[Problem]:
    """Yield sweepers that need many runs to have looked at all of a large table."""
    for one in overview.sweepers:
        if one.runs_a_pass > 1 and one.state is not State.OFF:
            takes = one.runs_a_pass * one.interval
            text = f"reads its large table in {one.runs_a_pass} runs, {length(takes)} in all, for want of an index"
            yield Problem(one.name, text, "`sb-worker check` prints the index", note=takes <= PASS_WITHIN)
