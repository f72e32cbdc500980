"""What is wrong with the processes of a deployment: who is missing, and who is not set as the others are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta

from app.fleet.processes import Process
from app.fleet.signs_of_life import BEAT
from app.overview.model import Overview, Problem, State, SweeperView
from app.overview.words import length, listed

#: How far a machine's clock may be off. One that is kept by NTP is right to some milliseconds; the shortest cadence is
#: a second, and a sign of life may be under way for as long, so that less than this may be the way to the server.
CLOCK_OFF = timedelta(seconds=2)
#: Ticks that a scheduler may seem not to have sent: some are under way, or were sent since it last gave a sign of life.
TICKS_MISSED = 3
_LOGGED = ("log", "noop")


def missing(overview: Overview) -> Iterator[Problem]:
    """Yield kinds of processes of which none lives."""
    fleet = overview.processes
    if "processes" in overview.unread:
        return
    if not any(one.alive and one.schedules for one in fleet):
        last = max((one.ticked_at for one in fleet if one.ticked_at), default=None)
        ticks = f"; the last tick was sent {length(overview.now - last)} ago" if last else "; no tick is known of"
        yield Problem(
            "scheduler",
            f"none is alive{_since(overview, (one for one in fleet if one.schedules))}{ticks}",
            "start one: `periodiq app.actors`, or the replica: `sb-worker run`",
        )
    if not any(one.alive and one.sweeps for one in fleet):
        yield Problem(
            "worker",
            f"none is alive{_since(overview, (one for one in fleet if one.sweeps))}; nothing is swept",
            "start one: `dramatiq app.actors --queues sweeps`, or the replica: `sb-worker run`",
        )
    if not any(one.alive and one.notifies for one in fleet):
        others = any(sink.name not in _LOGGED for sink in overview.sinks)
        since = _since(overview, (one for one in fleet if one.notifies))
        yield Problem(
            "notifier",
            f"none is alive{since}; nobody is notified but by the log",
            "start one: `dramatiq app.actors --queues sinks`, or the replica: `sb-worker run`",
            note=not others,
        )


def silent(overview: Overview) -> Iterator[Problem]:
    """Yield that schedulers live and send no ticks."""
    living = [one for one in overview.processes if one.alive and one.schedules]
    patience = silence(living)
    if patience is None:
        return
    last = max(one.ticked_at or one.started_at for one in living)
    if overview.now - last > patience:
        text = f"alive, and has sent no tick for {length(overview.now - last)}"
        yield Problem("scheduler", text, "see its log, and whether Redis takes its messages: `sb-worker check`")


def silence(schedulers: Sequence[Process]) -> timedelta | None:
    """Return for how long schedulers may seem to send no tick; None where they have none to send."""
    shortest = min((min(one.cadences.values()) for one in schedulers if one.cadences), default=None)
    return None if shortest is None else shortest * TICKS_MISSED + BEAT * 2


def _since(overview: Overview, gone: Iterable[Process]) -> str:
    last = max((one.ended_at or one.seen_at for one in gone), default=None)
    return "" if last is None else f", for {length(overview.now - last)} now"


def cadences(overview: Overview) -> Iterator[Problem]:
    """Yield sweepers that living processes would run at different cadences, or not at all."""
    living = [one for one in overview.processes if one.alive]
    differing: dict[str, list[str]] = {}
    for sweeper in overview.sweepers:
        if not disagree(sweeper.name, living):
            continue
        by_value: dict[str, list[str]] = {}
        for one in living:
            if sweeper.name in one.cadences or sweeper.name in one.off:
                value = length(one.cadences[sweeper.name]) if sweeper.name in one.cadences else "off"
                by_value.setdefault(value, []).append(f"{one.kind} {one.host}:{one.pid}")
        said = "; ".join(f"{value} in {listed(sorted(who))}" for value, who in sorted(by_value.items()))
        differing.setdefault(said, []).append(sweeper.name)
    for said, names in differing.items():
        yield Problem(
            listed(names),
            f"processes disagree how often: {said}",
            "give all processes the same SB_SWEEP_* variables, and start those anew that differ",
        )


def disagree(name: str, living: Sequence[Process]) -> bool:
    """Return whether living processes mean to run a sweeper at different cadences, or some of them not at all."""
    known = [one for one in living if name in one.cadences or name in one.off]
    return len({one.cadences.get(name) for one in known}) > 1


def own_settings(overview: Overview) -> Iterator[Problem]:
    """Yield that who asks has other settings than the processes, which agree."""
    living = [one for one in overview.processes if one.alive]
    names = [
        sweeper.name
        for sweeper in overview.sweepers
        if living and not disagree(sweeper.name, living) and sweeper.own_interval != _of_processes(sweeper)
    ]
    if names:
        text = "the processes have other settings than this command, whose environment is not theirs"
        yield Problem(listed(names), text, "what is shown here is the processes' own", note=True)


def _of_processes(sweeper: SweeperView) -> timedelta | None:
    return None if sweeper.state is State.OFF else sweeper.interval


def clocks(overview: Overview) -> Iterator[Problem]:
    """Yield machines whose clock is off."""
    off: dict[str, timedelta] = {}
    for one in overview.processes:
        if (
            one.alive
            and abs(one.clock_ahead) > CLOCK_OFF
            and abs(one.clock_ahead) > abs(off.get(one.host, timedelta(0)))
        ):
            off[one.host] = one.clock_ahead
    for host, ahead in sorted(off.items()):
        side = "ahead of" if ahead > timedelta(0) else "behind"
        kinds = sorted({one.kind for one in overview.processes if one.alive and one.host == host})
        yield Problem(
            f"clock of {host}",
            f"is {length(abs(ahead))} {side} PostgreSQL's ({listed(kinds)}): ticks come at the wrong moment",
            "set that machine's clock by NTP (`chronyc tracking`, `timedatectl`)",
        )


def versions(overview: Overview) -> Iterator[Problem]:
    """Yield that several releases run side by side."""
    found = sorted({one.version for one in overview.processes if one.alive})
    if len(found) > 1:
        yield Problem("versions", f"several run: {listed(found)}", "finish the roll-out", note=True)
