"""What is wrong with PostgreSQL or Redis, and with receivers of notifications."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from app.overview.model import Blocker, Overview, Problem, SinkView
from app.overview.words import length

#: How long a delivery may be due before somebody should look at who delivers.
DELIVERED_WITHIN = timedelta(minutes=1)
_NOTIFIER = "see that a notifier runs, and its log: `dramatiq app.actors --queues sinks`, or `sb-worker run`"
_REDIS = {
    "READONLY": "let REDIS_URL lead to the master",
    "OOM": "give Redis more memory (maxmemory), or find what fills it",
    "NOPERM": "`sb-worker check` prints the ACL rules that suffice",
    "NOAUTH": "put the password into REDIS_URL",
    "WRONGPASS": "put the right user and password into REDIS_URL",
    "MISCONF": "Redis cannot write to its disk: see its log",
}


def servers(overview: Overview) -> Iterator[Problem]:
    """Yield servers that are of no use now."""
    for server in overview.servers:
        if not server.problem:
            continue
        text = server.detail or server.problem
        if server.name == "postgres":
            standby = server.problem == "read_only"
            remedy = (
                "let DATABASE_URL lead to the primary, or promote this one"
                if standby
                else "start PostgreSQL, or put DATABASE_URL right; `sb-worker check` says more"
            )
            yield Problem("PostgreSQL", text, remedy)
        else:
            word = "" if server.problem == "unreachable" else f" ({server.problem})"
            remedy = _REDIS.get(server.problem, "start Redis, or put REDIS_URL right; `sb-worker check` says more")
            yield Problem("Redis", text + word, remedy)


def locked(overview: Overview) -> Iterator[Problem]:
    """Yield sessions that keep others from tables, each with the statement that ends it."""
    for blocker in overview.blockers:
        yield Problem(blocker.table or "rows", f"is held by {_session(blocker)}", _remedy(blocker))


def _session(blocker: Blocker) -> str:
    if not blocker.pid:
        return "a prepared transaction"
    whose = "a session of our own role" if blocker.own_role else "a session of another role"
    known = [f"pid {blocker.pid}"]
    known += [blocker.state] if blocker.state else []
    known += [f"its transaction {length(blocker.age)} old"] if blocker.age is not None else []
    return f"{whose} ({', '.join(known)})"


def _remedy(blocker: Blocker) -> str:
    if not blocker.pid:
        return "see pg_prepared_xacts; end it by ROLLBACK PREPARED"
    return f"if it is not to go on: SELECT pg_terminate_backend({blocker.pid})"


def sinks(overview: Overview) -> Iterator[Problem]:
    """Yield receivers that get nothing, or not all."""
    for sink in overview.sinks:
        subject = f"sink {sink.name}"
        if sink.state == "off":
            yield Problem(subject, f"is switched off ({sink.reason}){_waiting(sink)}", _switched_off(sink))
        elif sink.state == "resting":
            answers = f"`sb-worker notify test {sink.name}` says what it answers"
            yield Problem(subject, f"fails, and is left alone for a while{_waiting(sink)}", answers)
        elif sink.state == "on" and sink.due_since and overview.now - sink.due_since > DELIVERED_WITHIN:
            late = length(overview.now - sink.due_since)
            yield Problem(subject, f"is late by {late}{_waiting(sink)}", _NOTIFIER)
        if sink.dead:
            text = f"has {sink.dead:,} dead letter{'s' * (sink.dead != 1)}"
            yield Problem(
                subject, text, f"`sb-worker dead list --sink {sink.name}`; then `dead replay` or `dead purge`"
            )


def _waiting(sink: SinkView) -> str:
    return f"; {sink.waiting:,} wait for it" if sink.waiting else ""


def _switched_off(sink: SinkView) -> str:
    return f"put its credentials or address right, start the notifiers anew, then `sb-worker notify enable {sink.name}`"
