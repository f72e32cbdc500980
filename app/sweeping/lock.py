"""The Redis lock of a sweeper: one holder at a time, on keys and in a form that a Go replica understands.

Three keys a sweeper, below `<namespace>:`:
  lock:worker:sweeper:<name>     the holder's token, 32 hex digits, expiring with the lease (shared with Go)
  tick:worker:sweeper:<name>     the newest finished slot (ours; a Go replica ignores it)
  streak:worker:sweeper:<name>   how many attempts failed since the last success (ours)

The lock keeps replicas from working at once and losers from asking PostgreSQL anything. It is not what makes a
slot run once: a paused holder does not know that it lost. That is the fence's part (`app.sweeping.ledger`).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import redis
import structlog

from app.core.errors import LeaseLost, describe
from app.sweeping.schedule import Slot

if TYPE_CHECKING:
    from psycopg import Connection

log = structlog.get_logger("lease")

#: TTL of marks and streaks: longer than any sensible interval, yet bounded.
_MEMORY = timedelta(days=7)

# One call decides: is the tick too old (by this server's clock alone), is its slot done, is the lock free. A run takes
# the newest due slot, so an older tick asks for that one: else a scheduler whose clock is behind would find all its
# slots done, by the runs that its own ticks had caused. A call whose reply was lost is repeated with the same token and
# must find its own lock acquired, not held by a stranger.
_ACQUIRE = """
local now = redis.call('TIME')
local micros = now[1] * 1000000 + now[2]
local sent, interval = tonumber(ARGV[4]), tonumber(ARGV[5])
if sent and micros - sent > interval then return {'stale', 0} end
local slot, mark = tonumber(ARGV[3]), tonumber(redis.call('GET', KEYS[2]) or '')
if slot then slot = math.max(slot, micros - micros % interval) end
if slot and mark and mark >= slot then return {'done', 0} end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return {'held', 0} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {'acquired', tonumber(redis.call('GET', KEYS[3]) or '0')}
"""

_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

# The mark moves forward only, and also for a holder that lost its lock: what is marked has been committed.
_RELEASE = """
local mark = tonumber(redis.call('GET', KEYS[2]) or '')
if ARGV[2] ~= '' and not (mark and mark >= tonumber(ARGV[2])) then
  redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[4])
end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[3] == 'failed' then
  redis.call('INCR', KEYS[3])
  redis.call('PEXPIRE', KEYS[3], ARGV[4])
elseif ARGV[3] == 'succeeded' then
  redis.call('DEL', KEYS[3])
end
return redis.call('DEL', KEYS[1])
"""


class Refusal(StrEnum):
    """Why a tick got no lock."""

    HELD = "held"
    DONE = "done"
    STALE = "stale"


class RunOutcome(NamedTuple):
    """How a run ended, as far as the next ticks need to know; written down with the lock's release."""

    #: The slot that needs no other run.
    finished: Slot | None = None
    #: What becomes of the streak of failures: `failed` adds one, `succeeded` ends it.
    streak: Literal["", "failed", "succeeded"] = ""


#: The outcomes of a run that failed, and of one of which nothing is known.
FAILED, UNKNOWN = RunOutcome(streak="failed"), RunOutcome()


class Lease:
    """A lock that is held. Valid until `deadline` (monotonic seconds), which renewal moves."""

    def __init__(self, name: str, token: str, since: float, length: timedelta) -> None:
        self.name = name
        self.token = token
        self._lost = threading.Event()
        self._guard = threading.Lock()
        self._connection: Connection[Any] | None = None
        self.extend(since, length)

    def extend(self, since: float, length: timedelta) -> None:
        """Move the deadline to one lease after `since`, the moment before the call that renewed it."""
        self.deadline = since + length.total_seconds()
        self.renew_at = since + length.total_seconds() / 3

    @property
    def lost(self) -> bool:
        """Whether the lock is known to be gone, or may be because no renewal got through in time."""
        return self._lost.is_set() or time.monotonic() >= self.deadline

    def check(self) -> None:
        """Raise LeaseLost unless the lock is held for certain."""
        if self.lost:
            raise LeaseLost

    def lose(self) -> None:
        """Declare the lock lost and cut the statement that runs under it."""
        self._lost.set()
        self.cut()

    def cut(self) -> None:
        """Cancel the statement that runs under this lease, if there is one."""
        with self._guard:
            if self._connection is not None:
                with suppress(Exception):
                    self._connection.cancel_safe(timeout=1.0)

    @contextmanager
    def guarding(self, connection: Connection[Any]) -> Iterator[None]:
        """Have `cut` reach this connection while the body runs, and never after: the pool lends it on."""
        with self._guard:
            self._connection = connection
        try:
            yield
        finally:
            with self._guard:
                self._connection = None


@dataclass(frozen=True)
class Tick:
    """A tick whose lock is held: what the middleware hands to the actor."""

    lease: Lease
    #: The slot that it asks for; None for whichever is current.
    slot: Slot | None = None
    #: How often it was tried before.
    attempt: int = 0
    #: Failed attempts of its sweeper since the last success, by any replica.
    streak: int = 0


#: The tick that this thread is working on.
current: ContextVar[Tick | None] = ContextVar("tick", default=None)


class Locks:
    """Acquires, renews and releases the sweepers' locks. One renewing thread a process, started by `start`."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        namespace: str,
        lease: timedelta,
    ) -> None:
        self._namespace = namespace
        self._length = lease
        self._pause = lease.total_seconds() / 3
        self._held: dict[str, Lease] = {}
        self._changed = threading.Condition()
        self._acquire = client.register_script(_ACQUIRE)
        self._renew = client.register_script(_RENEW)
        self._release = client.register_script(_RELEASE)

    @property
    def held(self) -> list[Lease]:
        """The leases that this process holds now."""
        with self._changed:
            return list(self._held.values())

    def start(self) -> None:
        """Start the renewing thread; call it after the fork."""
        threading.Thread(target=self._keep, name="lease-keeper", daemon=True).start()

    def acquire(
        self, name: str, *, slot: Slot | None, sent: int | None, interval: timedelta, attempt: int = 0
    ) -> Tick | Refusal:
        """Take the lock for one tick, or return why not. Times in microseconds. Raises redis.RedisError.

        `sent` is when the tick was enqueued, by the Redis server's clock, so that no other clock is trusted.
        """
        token = secrets.token_hex(16)
        args: list[str | int] = [
            token,
            _ms(self._length),
            _text(slot),
            _text(sent),
            interval // timedelta(microseconds=1),
        ]
        before = time.monotonic()
        try:
            answer, streak = self._acquire(keys=self._keys(name), args=args)
        except redis.ConnectionError:  # the reply may be lost, not the call: ask again, as the same holder
            before = time.monotonic()
            answer, streak = self._acquire(keys=self._keys(name), args=args)
        word = answer.decode() if isinstance(answer, bytes) else answer
        if word != "acquired":
            return Refusal(word)
        lease = Lease(name, token, before, self._length)
        with self._changed:
            self._held[token] = lease
            self._changed.notify()
        return Tick(lease, slot, attempt, int(streak))

    def release(self, lease: Lease, outcome: RunOutcome = UNKNOWN) -> None:
        """Give the lock back and write down how the run ended. Never raises: the lock expires by itself."""
        with self._changed:
            self._held.pop(lease.token, None)
        args: list[str | int] = [lease.token, _text(outcome.finished), outcome.streak, _ms(_MEMORY)]
        try:
            self._release(keys=self._keys(lease.name), args=args)
        except redis.RedisError as error:
            log.warning("lock not released; it expires by itself", task=lease.name, error=describe(error).error)

    def _keys(self, name: str) -> list[str]:
        return [f"{self._namespace}:{kind}:worker:sweeper:{name}" for kind in ("lock", "tick", "streak")]

    def _keep(self) -> None:
        while True:
            with self._changed:
                due = min((lease.renew_at for lease in self._held.values()), default=None)
                if due is None or due > time.monotonic():
                    self._changed.wait(None if due is None else due - time.monotonic())
                    continue
            for lease in self.held:
                if lease.renew_at <= time.monotonic():
                    self._renew_one(lease)

    def _renew_one(self, lease: Lease) -> None:
        before = time.monotonic()
        try:
            kept = bool(self._renew(keys=self._keys(lease.name)[:1], args=[lease.token, _ms(self._length)]))
        except redis.RedisError:
            # Not lost yet: the key lives on until the lease, counted from before the last good call, is over.
            kept = time.monotonic() < lease.deadline
            lease.renew_at = min(time.monotonic() + self._pause / 4, lease.deadline)
        else:
            if kept:
                lease.extend(before, self._length)
        if not kept:
            self._lose(lease)

    def _lose(self, lease: Lease) -> None:
        with self._changed:
            held = self._held.pop(lease.token, None)
        if held is not None:  # else it was released while we asked, and nothing is lost
            lease.lose()


def _ms(length: timedelta) -> int:
    return length // timedelta(milliseconds=1)


def _text(number: int | None) -> str:
    return "" if number is None else str(number)
