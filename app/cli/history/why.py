"""`sb-worker why`: what became of one slot of one sweeper."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString

import click

from actors import SWEEPERS
from app.cli.help import examples
from app.cli.history.past import past
from app.cli.names import SWEEPER
from app.fleet import processes
from app.fleet.signs_of_life import KEPT
from app.overview.history import facts as reading
from app.overview.history import grid
from app.overview.history.answer import Answer, Served
from app.overview.history.blockers import Blocker, blockers
from app.overview.history.cadences import Cadences
from app.overview.history.causes import WAITED_IN_VAIN
from app.overview.history.explaining import explain
from app.overview.history.facts import Asked, Facts
from app.overview.history.live_locks import live_locks
from app.overview.history.transaction import looking_back
from app.overview.history.when import parse_when
from app.overview.history.wording import length, typed
from app.storage.postgres import only_row
from app.worker.loading import Loaded

if TYPE_CHECKING:
    from psycopg import Cursor

_NOW: LiteralString = "SELECT clock_timestamp() AS now"
_STATUS = {Served.YES: 0, Served.UNKNOWN: 1, Served.NO: 3}


@click.command(
    "why",
    short_help="Say who did the work of a slot, or why nobody did.",
    epilog=examples(
        "sb-worker why wraps-expired              the newest slot",
        "sb-worker why wraps-expired 10m          the one of ten minutes ago",
        "sb-worker why agents-stale 14:05",
        "sb-worker why agents-stale 2026-11-23T14:05:00+01:00",
    ),
)
@click.argument("sweeper", type=SWEEPER, metavar="SWEEPER")
@click.argument("when", required=False)
@click.option("-o", "--output", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def why(sweeper: str, when: str | None, form: str) -> None:
    """Say who did the work of one slot of SWEEPER, or why nobody did, and what that rests on.

    WHEN is a moment in the slot: how long ago (10m), a time of the day (14:05, its newest), or ISO 8601
    (2026-11-23T14:05:00Z). UTC unless it says otherwise. Without it, the newest slot that is due.

    \b
    Exit status:
      0  its work was done: by its own run, by hand, or covered by a later run
      3  it was not, or is being done now: the line says why
      1  that cannot be told; the lines say what to look at next
      2  wrong usage
    """  # noqa: D301 - click wants the character itself
    with past() as (loaded, connection):
        locks = live_locks(loaded.redis, [sweeper])
        with looking_back(connection) as cursor:
            answer, facts = _explain(cursor, loaded, sweeper, when, locks)
            in_the_way = _blockers(cursor, facts, loaded.worker.lease, answer)
    if form == "json":
        click.echo(json.dumps(_as_json(answer, facts, in_the_way)))
    else:
        for line in _lines(answer, in_the_way):
            click.echo(line)
    sys.exit(_STATUS[answer.served])


def _explain(
    cursor: Cursor[dict[str, Any]], loaded: Loaded, name: str, when: str | None, locks: Any
) -> tuple[Answer, Facts]:
    """Return the answer and what it was found by. Raises click.BadParameter."""
    now: datetime = only_row(cursor.execute(_NOW))["now"]
    pairs = list(zip(SWEEPERS, loaded.sweepers, strict=True))
    known = processes.read(cursor, KEPT * 2)
    cadences = Cadences({sweeper.name: own.tick for sweeper, own in pairs if own.enabled}, known, now)
    sweeper, settings = next(pair for pair in pairs if pair[0].name == name)
    try:
        moment = now if when is None else parse_when(when, now)
        interval = cadences.at(name, moment) or settings.tick
        slot = grid.slot_of(moment, interval)
        _ = slot + interval * 2, slot - interval * 2  # the calendar ends: OverflowError
    except (ValueError, OverflowError) as error:
        text = str(error) if isinstance(error, ValueError) else "not a time that a sweeper can have a slot at"
        raise click.BadParameter(text, param_hint="WHEN") from None
    asked = Asked(
        name,
        slot,
        interval,
        now,
        off=None if settings.enabled else settings.switch,
        relation=sweeper.rests_without(settings),
        tables=[*sweeper.needs, *sweeper.uses],
        retention=loaded.worker.ledger_retention,
        lease=loaded.worker.lease,
        redis=locks is not None,
        lock=(locks or {}).get(name),
    )
    facts = reading.read(cursor, asked, cadences, known)
    return explain(facts), facts


def _blockers(cursor: Cursor[dict[str, Any]], facts: Facts, lease: timedelta, answer: Answer) -> list[Blocker]:
    """Return who is in the way now, where the slot is one that is being tried, or that failed by waiting for a lock."""
    waited = facts.attempts and facts.attempts[-1].sqlstate in WAITED_IN_VAIN
    if answer.served is Served.YES or not (answer.kind in ("running", "locked") or waited):
        return []
    return blockers(cursor, facts.asked.tables, old=lease / 6)


def _lines(answer: Answer, in_the_way: Iterable[Blocker]) -> Iterator[str]:
    """Yield what is printed; nothing in it steers a terminal."""
    yield typed(answer.sentence, most=None)
    for line in (*answer.facts, *map(_blocker_line, in_the_way)):
        yield f"  - {typed(line, most=None)}"
    for line in answer.next:
        yield f"  next: {typed(line, most=None)}"


def _blocker_line(blocker: Blocker) -> str:
    whose = "a worker's" if blocker.ours else "none of a worker's"
    if blocker.state is None and blocker.age is None:
        state = "its state is not for this role to see (pg_read_all_stats)"
    else:
        open_for = f", its transaction open for {length(blocker.age)}" if blocker.age is not None else ""
        state = f"{blocker.state or 'state unknown'}{open_for}"
    does = "blocks a sweep on" if blocker.seen else "keeps writers from" if blocker.strong else "may hold rows of"
    return f"in the way now: process {blocker.pid} of PostgreSQL {does} {blocker.table}: {state}; {whose}"


def _as_json(answer: Answer, facts: Facts, in_the_way: list[Blocker]) -> dict[str, Any]:
    asked = facts.asked
    return {
        "sweeper": asked.name,
        "slot": asked.slot.isoformat(),
        "interval_seconds": asked.interval.total_seconds(),
        "kind": answer.kind,
        "served": answer.served.value,
        "answer": answer.sentence,
        "facts": list(answer.facts),
        "next": list(answer.next),
        "in_the_way": [
            {**each._asdict(), "age": each.age.total_seconds() if each.age is not None else None} for each in in_the_way
        ],
    }
