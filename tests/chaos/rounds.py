"""The rounds: which faults strike, how often, and how many of them must have had an effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from tests.chaos import preload
from tests.chaos.deployment import LEASE_SECONDS, NUMBERS, Plan
from tests.chaos.faults.argocd import fail_argocd
from tests.chaos.faults.clocks import postgres_clock_jumps, process_clocks_jump, redis_clock_jumps
from tests.chaos.faults.fault import ByTurns, Strike
from tests.chaos.faults.go_replica import go_beside_ours
from tests.chaos.faults.kill import kill_at_random, kill_in_a_transaction
from tests.chaos.faults.mail import fail_email
from tests.chaos.faults.network import network_of_all, network_of_one
from tests.chaos.faults.operator import look, mute, pause, sweep_by_hand, unlock
from tests.chaos.faults.postgres_server import SETTINGS, any_of_postgres, crashed
from tests.chaos.faults.redis_server import any_of_redis, wiped
from tests.chaos.faults.rolling import INTERVALS, roll
from tests.chaos.faults.sinks import IMPATIENT, fail_slack, fail_webhook
from tests.chaos.faults.stops import stop_at_random, stop_in_a_transaction
from tests.chaos.floors import Floor, of_rounds, without


@dataclass(frozen=True)
class Round:
    """One kind of round."""

    name: str
    #: What it does, as the table says it.
    text: str
    #: Faults, each struck from a thread of its own.
    strikes: Sequence[Strike] = ()
    #: How many effects there must have been. What can be had in a minute by turns is asked for kind by kind.
    floors: Sequence[Floor] = ()
    #: Makes the deployment's plan, in this directory.
    plan: Callable[[Path], Plan] = lambda _directory: Plan()
    #: Intervals that sweepers have in the round, the usual one first, and the longest lease.
    intervals: Sequence[timedelta] = (timedelta(seconds=1),)
    lease: timedelta = timedelta(seconds=LEASE_SECONDS)


def without_gcc(made: Round) -> Round | None:
    """Return what can be played of a round where there is no gcc, and says so; None when that is nothing."""
    left_out = {kind for strike in made.strikes for kind in strike.strike.kinds_by_gcc}
    strikes = [strike for strike in made.strikes if strike.strike.kinds_by_gcc != strike.strike.kinds]
    if made.strikes and not strikes:
        return None
    if not left_out:
        return made
    said = ", ".join(sorted(kind for kind in left_out if ": " not in kind))
    text = f"{made.text} (not played: {said}: needs gcc)"
    return replace(made, text=text, strikes=strikes, floors=without(made.floors, left_out))


_ROLLING = (timedelta(seconds=1), *(each for each in INTERVALS if each != timedelta(seconds=1)))
_CLOCKS = ["postgres", "redis", *(f"{kind}{place}" for kind, number in NUMBERS.items() for place in range(number))]


def _recorded(_directory: Path) -> Plan:
    return Plan(records_locks=True)


def _full_disk(directory: Path) -> Plan:
    return Plan(postgres_settings=SETTINGS, preload=preload.preloaded(directory, disks=["postgres"]))


def _clocks(directory: Path) -> Plan:
    return Plan(preload=preload.preloaded(directory, clocks=_CLOCKS))


def _everything(directory: Path) -> Plan:
    return Plan(
        proxied=True,
        settings=IMPATIENT,
        postgres_settings=SETTINGS,
        preload=preload.preloaded(directory, clocks=_CLOCKS, disks=["postgres"]),
        mail=True,
    )


ROUNDS: Mapping[str, Round] = {
    made.name: made
    for made in (
        Round("none", "left alone: the control", plan=_recorded),
        Round(
            "kill",
            "kill -9, mostly in the middle of a transaction: of whole processes, main processes and children",
            (
                *(Strike(f"kill {thread}", kill_in_a_transaction, every=2.5) for thread in range(2)),
                Strike("kill at random", kill_at_random, every=6.0),
            ),
            of_rounds.KILL,
            _recorded,
        ),
        Round(
            "stops",
            "SIGSTOP in the middle of transactions, for shorter and longer than the lease, several at once",
            (
                *(Strike(f"stop {thread}", stop_in_a_transaction, every=0.5) for thread in range(3)),
                Strike("stop at random", stop_at_random, every=3.0),
            ),
            of_rounds.STOPS,
            _recorded,
        ),
        Round(
            "redis",
            "Redis wiped each 5 s (flushed, or killed and empty); by turns full, a replica, disconnected, paused",
            (Strike("wipe", wiped, every=4.5), Strike("redis", any_of_redis, every=3.0)),
            of_rounds.REDIS,
        ),
        Round(
            "postgres",
            "PostgreSQL crashed each 20 s; by turns read-only, its disk full, no connections, a table locked, paused",
            (Strike("crash", crashed, every=18.0), Strike("postgres", any_of_postgres, every=2.0)),
            of_rounds.POSTGRES,
            _full_disk,
        ),
        Round(
            "network",
            "connections reset, cut in an answer, silent, parted, slow, answers late and lost: of one, and of all",
            (
                *(Strike(f"network {thread}", network_of_one, every=1.5) for thread in range(2)),
                Strike("network of all", network_of_all, every=6.0),
            ),
            of_rounds.NETWORK,
            lambda _directory: Plan(proxied=True),
        ),
        Round(
            "clocks",
            "clocks a second to an hour off and jumping: schedulers, workers, notifiers, Redis and PostgreSQL",
            (
                Strike("clocks of processes", process_clocks_jump, every=3.0),
                Strike("redis's clock", redis_clock_jumps, every=6.0),
                Strike("postgres's clock", postgres_clock_jumps, every=6.0),
            ),
            of_rounds.CLOCKS,
            _clocks,
        ),
        Round(
            "sinks",
            "receivers, mail among them, and ArgoCD fail, each in twenty ways or more",
            (
                Strike("webhook", fail_webhook, every=0.5),
                Strike("slack", fail_slack, every=0.5),
                Strike("email", fail_email, every=0.5),
                Strike("argocd", fail_argocd, every=0.5),
            ),
            of_rounds.SINKS,
            lambda _directory: Plan(settings=IMPATIENT, mail=True),
        ),
        Round(
            "operator",
            "pauses, mutes, sweeps by hand and locks of strangers, beside a Go worker and rolling updates",
            (
                Strike("look", look, every=1.0),
                Strike("hand", ByTurns(sweep_by_hand, unlock), every=1.0),
                Strike("pause", pause, every=1.0),
                Strike("mute", mute, every=1.0),
                Strike("go", go_beside_ours, every=4.0),
                Strike("rolling", roll, every=5.0),
            ),
            of_rounds.OPERATOR,
            intervals=_ROLLING,
            lease=timedelta(seconds=LEASE_SECONDS + 1),
        ),
        Round(
            "all",
            "everything at once",
            (
                *(Strike(f"kill {thread}", kill_in_a_transaction, every=8.0) for thread in range(2)),
                Strike("kill at random", kill_at_random, every=15.0),
                *(Strike(f"stop {thread}", stop_in_a_transaction, every=2.0) for thread in range(2)),
                Strike("stop at random", stop_at_random, every=6.0),
                Strike("wipe", wiped, every=20.0),
                Strike("redis", any_of_redis, every=8.0),
                Strike("crash", crashed, every=25.0),
                Strike("postgres", any_of_postgres, every=12.0),
                Strike("network", network_of_one, every=3.0),
                Strike("network of all", network_of_all, every=20.0),
                Strike("clocks of processes", process_clocks_jump, every=8.0),
                Strike("clocks of servers", ByTurns(redis_clock_jumps, postgres_clock_jumps), every=12.0),
                Strike("webhook", fail_webhook, every=2.0),
                Strike("slack", fail_slack, every=2.0),
                Strike("email", fail_email, every=2.0),
                Strike("argocd", fail_argocd, every=2.0),
                Strike("look", look, every=6.0),
                Strike("hand", ByTurns(sweep_by_hand, unlock), every=4.0),
                Strike("rest", ByTurns(pause, mute), every=4.0),
                Strike("go", go_beside_ours, every=12.0),
                Strike("rolling", roll, every=20.0),
            ),
            of_rounds.ALL,
            _everything,
            intervals=_ROLLING,
            lease=timedelta(seconds=LEASE_SECONDS + 1),
        ),
    )
}
