"""Why a slot had no run of its own: each function knows one cause, and returns it where the facts show it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from app.core.role import Kind
from app.fleet.processes import Process
from app.fleet.signs_of_life import BEAT
from app.overview.history.answer import Cause
from app.overview.history.cadences import last_sign
from app.overview.history.entry import Entry
from app.overview.history.facts import Facts
from app.overview.history.wording import at, at_second, length, rows, typed

#: A statement that waited for a lock in vain, and one that took too long, which may have waited as well.
WAITED_IN_VAIN = ("55P03", "57014")
#: What was seen to be in the way, in words.
_OBSTACLES = {
    "no_scheduler": "no scheduler was alive",
    "no_ticks": "schedulers lived, and sent no ticks",
    "redis_away": "Redis was away, or took no writes",
    "table_locked": "somebody held its table in PostgreSQL",
}
#: How long a tick may be on its way.
_ON_ITS_WAY = timedelta(seconds=2)


def off(facts: Facts) -> Cause | None:
    """It was off in every process that lived then, or is off here and no process has told otherwise."""
    asked = facts.asked
    alive = _alive(facts, ("scheduler", "worker"))
    variables = {process.off[asked.name] for process in alive if asked.name in process.off}
    if any(asked.name in process.cadences for process in alive):
        return None
    variable = next(iter(variables), asked.off)
    if variable is None:
        return None
    return Cause("off", f"it is off; {variable} switches it on" if variable else "it is off")


def paused(facts: Facts) -> Cause | None:
    """Somebody had paused it when its slot began."""
    pause = next((pause for pause in facts.pauses if pause.since <= facts.asked.slot), None)
    if pause is None:
        return None
    over = pause.until <= facts.asked.now
    text = f"it {'was' if over else 'is'} paused by {typed(pause.by)} until {at_second(pause.until)}"
    wake = () if over else (f"`sb-worker resume {facts.asked.name}` ends the pause",)
    return Cause("paused", f"{text} because: {typed(pause.reason)}", (f"paused at {at_second(pause.since)}",), wake)


def braked(facts: Facts) -> Cause | None:
    """It has stopped itself before it changed anything."""
    brake = facts.brake
    if brake is None or brake.braked_at >= facts.asked.end:
        return None
    let_go = f"`sb-worker sweep {facts.asked.name} --dry-run` says what is due; with --approve it is run"
    return Cause("braked", f"its brake holds it: {typed(brake.text)}", next=(let_go,))


def failed(facts: Facts) -> Cause | None:
    """Its attempts failed."""
    attempts = [row for row in facts.attempts if row.outcome == "failure"]
    if not attempts:
        return None
    last = attempts[-1]
    times = "1 attempt failed" if len(attempts) == 1 else f"{len(attempts)} attempts failed, the last one"
    text = f"{times} with {last.error}"
    if last.sqlstate not in WAITED_IN_VAIN:
        return Cause("failed", text, next=(f"`sb-worker check` tries what {facts.asked.name} needs",))
    tables = ", ".join([*(table.partition(".")[0] for table in facts.asked.tables), "sweep_state"])
    what = (
        "waited in vain for a lock" if last.sqlstate == "55P03" else "took too long, or waited for a lock for too long"
    )
    return Cause("failed", f"{text}: a statement {what} on one of {tables}")


def interrupted(facts: Facts) -> Cause | None:
    """Its run never came to its end."""
    cut = [row for row in facts.attempts if row.outcome == "interrupted"]
    if not cut:
        return None
    last = cut[-1]
    text = f"its run by {last.worker}, begun {at(last.started_at)}, was interrupted"
    return Cause("interrupted", f"{text} (killed, or it lost its lock)", (f"it had changed {rows(last.changed)}",))


def held_by_a_run(facts: Facts) -> Cause | None:
    """The run of an older slot still had the lock when it began."""
    row = next(iter(facts.overlapping), None)
    if row is None:
        return None
    who = f"the run of slot {at(row.slot)} by {row.worker}"
    if row.finished_at is None:
        since = length(facts.asked.now - row.started_at)
        return Cause("locked", f"{who} has been open for {since}, and had the lock")
    until = f"until {at(row.finished_at)}, {length(row.finished_at - facts.asked.slot)} into this slot"
    if row.outcome == "interrupted":
        return Cause("locked", f"{who} was interrupted, and its lock and row stayed {until}")
    return Cause("locked", f"its lock was held by {who} {until}")


def obstructed(facts: Facts) -> Cause | None:
    """Something was seen to be in the way."""
    obstacle = next(iter(facts.obstacles), None)
    if obstacle is None:
        return None
    span = (
        f"from {at_second(obstacle.since)} to {at_second(obstacle.until)} ({length(obstacle.until - obstacle.since)})"
    )
    if obstacle.kind == "foreign_lock":
        holder = "its lock was held by somebody who is no run of ours"
        see = f"the Redis key of the lock: <REDIS_NAMESPACE>:lock:worker:sweeper:{facts.asked.name}"
        return Cause("foreign_lock", f"{holder}, seen {span}", next=(see, "a Go worker beside us holds the same lock"))
    return Cause("obstacle", f"{_OBSTACLES.get(obstacle.kind, typed(obstacle.kind))}, seen {span}")


def no_tick(facts: Facts) -> Cause | None:
    """No scheduler lived, or the one that did sent nothing."""
    if not _signs_reach_back(facts):
        return None
    asked = facts.asked
    if not _alive(facts, ("scheduler",)):
        return Cause("no_tick", f"no tick was sent: no scheduler was alive {_gap(facts, 'scheduler')}", next=_START)
    silent = [
        process
        for process in _alive(facts, ("scheduler",))
        if process.seen_at >= asked.slot + _ON_ITS_WAY and (process.ticked_at is None or process.ticked_at < asked.slot)
    ]
    if len(silent) < len(_alive(facts, ("scheduler",))):
        return None
    ticked = max((process.ticked_at for process in silent if process.ticked_at), default=None)
    last = f"its last one at {at(ticked)}" if ticked else "none ever"
    text = f"no tick was sent: {_named(silent[0])} is alive and has sent {last}"
    return Cause("no_tick", text, next=("is Redis away for the scheduler? its log says `Redis is away` or `refuses`",))


def no_worker(facts: Facts) -> Cause | None:
    """No worker lived that could have taken the tick."""
    if not _signs_reach_back(facts) or _alive(facts, ("worker",)):
        return None
    return Cause("no_worker", f"nobody took its tick: no worker was alive {_gap(facts, 'worker')}", next=_START)


def held_by_a_stranger(facts: Facts) -> Cause | None:
    """Its lock is held at this moment, and no row of ours says by whom."""
    asked = facts.asked
    if asked.lock is None or asked.end <= asked.now or any(row.outcome == "running" for row in facts.overlapping):
        return None
    left = f" for {length(asked.lock.left)} more unless it is renewed" if asked.lock.left is not None else ""
    look = f"`sb-worker unlock {asked.name}` shows the lock, and asks before it deletes it"
    return Cause("locked", f"its lock is held{left} by somebody who has no row in the ledger", next=(look,))


def resting(facts: Facts) -> Cause | None:
    """The api's table is not there; only of this moment that is known."""
    if facts.table_there or facts.later is not None:
        return None
    return Cause(
        "resting", f"it rests: {facts.asked.relation} is missing", next=("it wakes up once the api has migrated",)
    )


def not_due(facts: Facts) -> Cause | None:
    """It has only just begun."""
    asked = facts.asked
    if asked.now >= asked.slot + _ON_ITS_WAY:
        return None
    return Cause(
        "not_due", f"it has been due for {length(asked.now - asked.slot)} only, and its tick may be on its way"
    )


#: The first one that is found is told first: what somebody has ordered, what was tried, what was in the way.
CAUSES: tuple[Callable[[Facts], Cause | None], ...] = (
    *(off, paused, braked, failed, interrupted, held_by_a_run),
    *(obstructed, no_tick, no_worker, held_by_a_stranger, resting, not_due),
)
_START = ("start a replica, or look why it ended: `sb-worker run`; its pods, its last log lines",)


def alive_then(facts: Facts) -> str:
    """Say how many processes gave signs of life in the slot."""
    if not facts.processes:
        return "no process has given a sign of life in the last 7 days"
    if not _signs_reach_back(facts):
        return f"signs of life reach back to {at_second(min(process.started_at for process in facts.processes))} only"
    numbers = {kind: len(_alive(facts, (kind,))) for kind in ("scheduler", "worker", "notifier")}
    return "alive then: " + ", ".join(f"{number} {kind}{'s' * (number != 1)}" for kind, number in numbers.items())


def _signs_reach_back(facts: Facts) -> bool:
    return any(process.started_at <= facts.asked.end for process in facts.processes)


def _alive(facts: Facts, kinds: tuple[str, ...]) -> list[Process]:
    """Return the processes of these kinds that lived at some time in the slot, those included that may have."""
    asked = facts.asked
    until = min(asked.end, asked.now)
    return [
        process
        for process in facts.processes
        if process.kind in kinds
        and (process.sweeps or process.kind != Kind.WORKER.value)
        and process.started_at <= until
        and (process.ended_at or last_sign(process, asked.now) + BEAT) >= asked.slot
    ]


def _gap(facts: Facts, kind: str) -> str:
    """Return from when to when no process of a kind lived, around the slot."""
    asked, own = facts.asked, [process for process in facts.processes if process.kind == kind]
    before = [last_sign(process, asked.now) for process in own if process.started_at < asked.slot]
    after = [process.started_at for process in own if process.started_at > asked.slot]
    if not before and not after:
        return "in the last 7 days"
    if not before:
        return f"before {at_second(min(after))}"
    return f"from {at_second(max(before))} {f'to {at_second(min(after))}' if after else 'on'}"


def _named(process: Process) -> str:
    return f"the {process.kind} {process.host}:{process.pid}"


def attempt_line(row: Entry) -> str:
    """Write one attempt as a fact."""
    took = f", took {length(row.took)}" if row.took is not None else ""
    words = f"{row.outcome} {row.error}".strip()
    return f"attempt: {at(row.started_at)} by {row.worker}: {words}{took}, changed {rows(row.changed)}"
