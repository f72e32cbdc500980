"""Judges the facts of one slot: who has done its work, or why nobody has."""

from __future__ import annotations

from datetime import datetime, timedelta

from app.overview.history import grid
from app.overview.history.answer import Answer, Cause, Served
from app.overview.history.causes import CAUSES, alive_then, attempt_line
from app.overview.history.entry import Entry
from app.overview.history.facts import Facts
from app.overview.history.wording import at, length, rows, slots, typed

#: Attempts that are listed.
_MOST_LISTED = 10


def explain(facts: Facts) -> Answer:
    """Return the answer."""
    slot = f"slot {at(facts.asked.slot)} of {facts.asked.name}"
    return _plain(slot, facts) or _without_a_run(slot, facts)


def _plain(slot: str, facts: Facts) -> Answer | None:
    """Return the answer where the slot's own rows give it."""
    asked = facts.asked
    if asked.slot > asked.now:
        soon = f"{slot} has not begun: it does in {length(asked.slot - asked.now)}"
        return Answer("future", Served.NO, soon, _cadence(facts))
    if (run := _own_run(facts)) is not None:
        return _ran(slot, run, facts)
    running = next((row for row in facts.attempts if row.outcome == "running"), None)
    return None if running is None else _under_way(slot, running, facts)


def _without_a_run(slot: str, facts: Facts) -> Answer:
    asked = facts.asked
    cause = next((cause for cause in (find(facts) for find in CAUSES) if cause is not None), None)
    if facts.later is not None and (answer := _done_by_another(slot, facts.later, facts, cause)):
        return answer
    if facts.first is None and (cause is None or cause.kind == "not_due"):
        return _untold("never_ran", f"{slot} was not run, and no run of it ever was", facts)
    if facts.first is not None and asked.end < facts.first and not facts.attempts:
        return _before_the_first(slot, facts, facts.first)
    if cause is None:
        return _untold("unknown", f"{slot} was not run, and nothing that is kept says why", facts)
    known = (*cause.facts, *_attempts(facts), *_cadence(facts), alive_then(facts))
    return Answer(cause.kind, Served.NO, f"{slot} was not run: {cause.text}", known, cause.next)


def _own_run(facts: Facts) -> Entry | None:
    """Return the run that succeeded for this slot: the tick's own rather than one by hand."""
    done = [row for row in facts.attempts if row.outcome == "success"]
    return min(done, key=lambda row: (row.requested_by is not None, row.slot), default=None)


def _ran(slot: str, run: Entry, facts: Facts) -> Answer:
    took = f"took {length(run.took)}, " if run.took is not None else ""
    late = f"{length(run.late)} late, " if not run.requested_by else ""
    text = f"{slot} was run by {run.worker}: began {at(run.started_at)}, {late}{took}changed {rows(run.changed)}"
    kind = "ran"
    if run.requested_by:
        kind, text = "by_hand", f"{text}; by hand, for {typed(run.requested_by)}"
    more = ("it left work to the next run (handed over)",) if run.handed_over else ()
    covered = (f"it covers {slots(run.covered)} before its own",) if run.covered else ()
    counts = " ".join(f"{name}={count}" for name, count in run.numbers.items() if count)
    earlier = tuple(attempt_line(row) for row in facts.attempts if row.id != run.id)[:_MOST_LISTED]
    known = (*((f"counts: {counts}",) if counts else ()), *covered, *more, *earlier, *_cadence(facts))
    return Answer(kind, Served.YES, text, known)


def _under_way(slot: str, run: Entry, facts: Facts) -> Answer:
    asked = facts.asked
    since = length(asked.now - run.started_at)
    known = (*_attempts(facts), *_cadence(facts))
    if asked.redis and asked.lock is None:
        dead = f"{slot} was begun by {run.worker} {since} ago and is open, but nobody holds its lock: its run is dead"
        return Answer("interrupted", Served.NO, dead, known, ("the next run closes it as interrupted, and takes over",))
    text = f"{slot} is being run now by {run.worker}, for {since}; changed {rows(run.changed)} so far"
    doubt = () if asked.redis else ("Redis does not answer: whether its lock is held is not known",)
    return Answer("running", Served.NO, text, (*doubt, *known))


def _done_by_another(slot: str, later: Entry, facts: Facts, cause: Cause | None) -> Answer | None:
    """Return the answer where a later run has done this slot's work too; None where the ledger does not say so."""
    asked = facts.asked
    intervals, _ = facts.cadences.of(later)
    interval = intervals[0] if intervals else asked.interval
    reaches = grid.slot_of(later.slot, interval) - later.covered * interval
    taken_over = any(row.outcome == "interrupted" for row in facts.attempts)
    if asked.end <= reaches and not taken_over:
        return _within_another(slot, interval, facts)
    took = f", took {length(later.took)}" if later.took is not None else ""
    run = f"the run of slot {at(later.slot)} by {later.worker} (began {at(later.started_at)}{took})"
    if asked.end > reaches:
        kind, text = "covered", f"{slot} is covered by {run}, which covers {slots(later.covered)}"
    else:
        kind, text = "taken_over", f"{slot} was taken over by {run}"
    why = (
        (f"it had no run of its own: {cause.text}", *cause.facts)
        if cause
        else ("why it had no run of its own is not kept",)
    )
    known = (*why, *_attempts(facts), *_cadence(facts), alive_then(facts))
    return Answer(kind, Served.YES, text, known)


def _within_another(slot: str, interval: timedelta, facts: Facts) -> Answer | None:
    """Return the answer where the next run counted by longer slots, and the one that this slot lies in was run."""
    outer, run = grid.slot_of(facts.asked.slot, interval), facts.earlier
    if outer == facts.asked.slot or run is None or run.slot < outer:
        return None
    text = (
        f"{slot} is none of those of {length(interval)} that the next run counted by: it lies in slot {at(outer)},"
        f" and the run of slot {at(run.slot)} by {run.worker} did that (began {at(run.started_at)})"
    )
    return Answer("within_another", Served.YES, text, (*_attempts(facts), *_cadence(facts), alive_then(facts)))


def _before_the_first(slot: str, facts: Facts, first: datetime) -> Answer:
    asked = facts.asked
    text = f"{slot} is older than the oldest run in the ledger, of {at(first)}"
    if min(first - asked.interval * 2, asked.slot) < asked.now - asked.retention:
        kept = f"the ledger keeps {length(asked.retention)} (SB_WORKER_LEDGER_RETENTION)"
        return Answer("too_old", Served.UNKNOWN, text, (kept, *_cadence(facts)))
    known = ("no older run was deleted: that was the first one", *_cadence(facts))
    return Answer("before_first", Served.NO, text, known)


def _untold(kind: str, text: str, facts: Facts) -> Answer:
    """Return what is known where nothing says why, and where to look."""
    asked = facts.asked
    look = [
        f"the workers' log lines of {asked.name} around {at(asked.slot)}",
        f'worker_scheduler_ticks_lost_total and worker_scheduler_runs_total{{task="{asked.name}"}} from then',
    ]
    if facts.later is not None:
        look.insert(0, "`sb-worker verify`: a later run has succeeded and does not cover it")
    if not facts.processes:
        look.insert(0, "is anything running? `sb-worker status`")
    redis = () if asked.redis else ("Redis does not answer: nothing is known of its lock",)
    known = (*redis, *_attempts(facts), *_cadence(facts), alive_then(facts))
    return Answer(kind, Served.NO if kind == "never_ran" else Served.UNKNOWN, text, known, tuple(look))


def _attempts(facts: Facts) -> tuple[str, ...]:
    lines = [attempt_line(row) for row in facts.attempts]
    more = (f"and {len(lines) - _MOST_LISTED} attempts more",) if len(lines) > _MOST_LISTED else ()
    return (*lines[:_MOST_LISTED], *more)


def _cadence(facts: Facts) -> tuple[str, ...]:
    """Say what the slot is by, where that is not plain."""
    asked = facts.asked
    told = facts.cadences.told_at(asked.name, asked.slot, asked.end)
    line = f"its slots are every {length(asked.interval)}"
    if len(told) > 1:
        others = ", ".join(length(each) for each in sorted(told))
        return (f"{line}: processes disagreed then ({others})",)
    now = facts.cadences.at(asked.name, asked.now)
    if now is not None and now != asked.interval:
        return (f"{line} of then; now it is run every {length(now)}",)
    return (line,)
