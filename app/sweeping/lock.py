"""The Redis lock of a sweeper: one holder at a time, on a key and in a form that a Go replica understands.

Two keys a sweeper:
  <namespace>:lock:worker:sweeper:<name>           the holder's token, 32 hex digits, expiring with the lease (of ours:
                                                   16 are random, 8 have the lease in ms, 8 say that it is ours)
  {<namespace>:lock:worker:sweeper:<name>}:tick    the newest finished slot by this Redis's clock (ours alone; the
                                                   braces put it into the lock's slot of a cluster)

The lock keeps replicas from working at once and losers from asking PostgreSQL anything. It is not what makes a
slot run once: a paused holder does not know that it lost. That is the fence's part (`app.sweeping.ledger`).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import redis
import structlog

from app.core import threads
from app.core.errors import LeaseLost, describe
from app.storage.connection import BoundedConnection, shut
from app.sweeping import clocks
from app.sweeping.schedule import Slot
from app.sweeping.strategy import TargetLocks
from app.sweeping.target_locks import RedisTargetLocks

if TYPE_CHECKING:
    from psycopg import Connection

    from app.sweeping.steering.order import Order

log = structlog.get_logger("lease")

#: How long a server may take to cancel a statement, seconds.
_CANCEL_SECONDS = 1.0
#: TTL of marks: longer than any sensible interval, yet bounded.
_MEMORY = timedelta(days=7)
#: How tokens of ours end.
_OURS = "5ecb71d9"

# One call decides: is the tick too old, is its slot done, is the lock free; all by this server's clock alone. A tick
# stands for the newest slot that is due, if its own is older (else a scheduler whose clock is behind would find all
# its slots done, by the runs that its own ticks had caused) or more than half an interval ahead (else it would mark
# slots to come as done). A mark that is ahead of this clock was made when the clock was, and does not count. A call
# whose reply was lost is repeated with the same token and must find its own lock acquired, not held by a stranger.
#
# A lock of ours lives for its lease at most, which its token names. More is what became of it when this server's clock
# was set back: should its holder be dead, nobody would get it for as long as the clock was ahead. So it is shortened,
# and whoever did that looks again when it is over: the next tick may be an hour away.
_ACQUIRE = f"""
local now = redis.call('TIME')
local micros = now[1] * 1000000 + now[2]
local sent, interval = tonumber(ARGV[4]), tonumber(ARGV[5])
if sent and micros - sent > interval then return {{'stale', '', 0}} end
local slot, mark = tonumber(ARGV[3]), tonumber(redis.call('GET', KEYS[2]) or '')
local current, ahead = micros - micros % interval, 0
if slot and slot - micros > interval / 2 then ahead = slot - current end
if slot and (slot < current or ahead > 0) then slot = current end
if slot and mark and mark >= slot and mark <= micros + interval then return {{'done', '', ahead}} end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  local lease = string.sub(holder, 25, 32) == '{_OURS}' and tonumber(string.sub(holder, 17, 24), 16)
  if not lease or redis.call('PTTL', KEYS[1]) <= lease then return {{'held', '', ahead}} end
  redis.call('PEXPIRE', KEYS[1], lease)
  return {{'shortened', '', ahead}}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if mark and mark > micros + interval then mark = nil end
return {{'acquired', slot and string.format('%.0f', slot) or '', ahead, string.format('%.0f', micros),
        mark and string.format('%.0f', mark) or ''}}
"""

_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

# The mark moves forward only, and also for a holder that lost its lock: what is marked has been committed. A tick may
# be taken at the very end of its slot, and its run claim the next one: that one is done then, unless it has not begun
# by this clock (PostgreSQL's is ahead: marked already, its own tick would be lost).
_RELEASE = """
local now = redis.call('TIME')
local micros = now[1] * 1000000 + now[2]
local slot, claimed = tonumber(ARGV[2]), tonumber(ARGV[5])
if claimed and claimed <= micros and claimed > (slot or 0) then slot = claimed end
local mark = tonumber(redis.call('GET', KEYS[2]) or '')
if slot and not (mark and mark >= slot and mark <= micros + tonumber(ARGV[4])) then
  redis.call('SET', KEYS[2], string.format('%.0f', slot), 'PX', ARGV[3])
end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


class Refusal(StrEnum):
    """Why a tick got no lock."""

    HELD = "held"
    #: Held until now for longer than its lease.
    SHORTENED = "shortened"
    DONE = "done"
    STALE = "stale"


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended, as far as its lock is concerned."""

    #: Whether the slot needs no other run.
    done: bool
    #: The slot that it claimed by PostgreSQL's clock, where it came so far.
    claimed: Slot | None = None
    #: What is still to be done, once the lock is free.
    afterwards: Callable[[], None] = _nothing


DONE, NOT_DONE = RunOutcome(done=True), RunOutcome(done=False)


class Lease:
    """A lock that is held. Valid until `deadline` (monotonic seconds), which renewal moves."""

    def __init__(self, name: str, token: str, since: float, length: timedelta) -> None:
        self.name = name
        self.token = token
        self._lost = threading.Event()
        self._guard = threading.Lock()
        self._connection: Connection[Any] | None = None
        self._progressed = since
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
        """Raise LeaseLost unless the lock is held for certain. A run that asks is one that makes progress."""
        if self.lost:
            raise LeaseLost
        self._progress()

    def idle(self, longest: timedelta) -> bool:
        """Return whether the run under it has not asked for the lock for so long."""
        return time.monotonic() - self._progressed >= longest.total_seconds()

    def lose(self) -> None:
        """Declare the lock lost and cut the statement that runs under it."""
        self._lost.set()
        self.cut()

    def cut(self) -> None:
        """Cancel the statement that runs under this lease, if there is one; by force if the server does not answer."""
        with self._guard:
            if self._connection is None:
                return
            try:
                self._connection.cancel_safe(timeout=_CANCEL_SECONDS)
            except Exception:  # noqa: BLE001 - whatever kept it from being cancelled
                shut(self._connection)

    @contextmanager
    def guarding(self, connection: Connection[Any]) -> Iterator[None]:
        """Have `cut` reach this connection while the body runs, and never after: the pool lends it on."""
        with self._guard:
            self._connection = connection
        bounded = connection if isinstance(connection, BoundedConnection) else None
        if bounded is not None:
            bounded.on_answer = self._progress
        try:
            yield
        finally:
            if bounded is not None:
                bounded.on_answer = None
            with self._guard:
                self._connection = None

    def _progress(self) -> None:
        self._progressed = time.monotonic()


@dataclass(frozen=True)
class Tick:
    """A tick whose lock is held: what the middleware hands to the actor."""

    lease: Lease
    interval: timedelta
    #: The slot that it stands for, by Redis's clock; None for whichever is current.
    slot: Slot | None = None
    #: How often it was tried before.
    attempt: int = 0
    #: The time by Redis's clock when the lock was taken, microseconds since the epoch.
    taken_at: int = 0
    #: How far the clock of its scheduler was ahead of Redis's, microseconds.
    ahead: int = 0
    #: Locks of single targets that its run may take.
    targets: TargetLocks = field(default_factory=TargetLocks)
    #: The newest slot that this Redis knows as finished.
    mark: Slot | None = None
    #: Who has asked for the run by hand; None for a tick.
    order: Order | None = None


#: The tick that this thread is working on.
current: ContextVar[Tick | None] = ContextVar("tick", default=None)


class Locks:
    """Acquires, renews and releases the sweepers' locks. One renewing thread a process, from `start` to `stop`."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        namespace: str,
        lease: timedelta,
    ) -> None:
        self._client = client
        self._namespace = namespace
        #: How long a lock lives unless it is renewed.
        self.length = lease
        self._pause = lease.total_seconds() / 3
        self._held: dict[str, Lease] = {}
        self._changed = threading.Condition()
        self._stopped = False
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
        threads.start("lease-keeper", self._keep)

    def stop(self) -> None:
        """Have the renewing thread end. What is still held lives until its lease is over."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def acquire(  # noqa: PLR0913 - what a tick says of itself
        self, name: str, *, slot: Slot | None, sent: int | None, interval: timedelta, attempt: int = 0, ahead: int = 0
    ) -> Tick | Refusal:
        """Take the lock for one tick, or return why not. Times in microseconds. Raises redis.RedisError.

        `sent` is when the tick was enqueued, by the Redis server's clock, so that no other clock is trusted.
        """
        token = f"{secrets.token_hex(8)}{min(_ms(self.length), 0xFFFFFFFF):08x}{_OURS}"
        args: list[str | int] = [
            token,
            _ms(self.length),
            _text(slot),
            _text(sent),
            interval // timedelta(microseconds=1),
        ]
        before = time.monotonic()
        try:
            answer = self._acquire(keys=self._keys(name), args=args)
        except redis.ConnectionError:  # the reply may be lost, not the call: ask again, as the same holder
            before = time.monotonic()
            answer = self._acquire(keys=self._keys(name), args=args)
        word, due, clamped, *more = (part.decode() if isinstance(part, bytes) else part for part in answer)
        clocks.report("scheduler", timedelta(microseconds=int(clamped)), timedelta(0), name)
        if word != "acquired":
            return Refusal(word)
        lease = Lease(name, token, before, self.length)
        with self._changed:
            self._held[token] = lease
            self._changed.notify()
        targets = RedisTargetLocks(self._client, self._namespace)
        taken_at, mark = int(more[0]), int(more[1]) if more[1] else None
        return Tick(lease, interval, int(due) if due else None, attempt, taken_at, ahead, targets, mark)

    def renew(self, lease: Lease) -> bool:
        """Have the lock's key live for another lease; return whether it is still ours. Raises redis.RedisError."""
        return bool(self._renew(keys=self._keys(lease.name)[:1], args=[lease.token, _ms(self.length)]))

    def release(self, tick: Tick, *, done: bool, claimed: Slot | None = None) -> None:
        """Give the lock back, and mark the slot if it needs no other run. Never raises: the lock expires by itself."""
        lease = tick.lease
        with self._changed:
            self._held.pop(lease.token, None)
        args: list[str | int] = [
            lease.token,
            _text(tick.slot if done else None),
            _ms(_MEMORY),
            tick.interval // timedelta(microseconds=1),
            _text(claimed if done else None),
        ]
        try:
            self._release(keys=self._keys(lease.name), args=args)
        except redis.RedisError as error:
            log.warning("lock not released; it expires by itself", task=lease.name, error=describe(error).error)

    def _keys(self, name: str) -> list[str]:
        lock = lock_key(self._namespace, name)
        return [lock, f"{{{lock}}}:tick"]

    def _keep(self) -> None:
        while not self._stopped:
            with self._changed:
                due = min((lease.renew_at for lease in self._held.values()), default=None)
                if due is None or due > time.monotonic():
                    self._changed.wait(None if due is None else due - time.monotonic())
                    continue
            for lease in self.held:
                if lease.renew_at <= time.monotonic():
                    self._keep_one(lease)

    def _keep_one(self, lease: Lease) -> None:
        """Renew a lock whose run makes progress. Never raises: this thread holds all locks of the process."""
        if lease.idle(self.length):
            log.warning("run stuck; its lock is given up", task=lease.name)
            self._lose(lease)
            return
        before = time.monotonic()
        try:
            kept = self.renew(lease)
        except Exception as error:  # noqa: BLE001 - from redis-py, or of the system: no descriptors, no memory
            # Not lost yet: the key lives on until the lease, counted from before the last good call, is over.
            log.debug("lock not renewed", task=lease.name, error=describe(error).error)
            kept = time.monotonic() < lease.deadline
            lease.renew_at = min(time.monotonic() + self._pause / 4, lease.deadline)
        else:
            if kept:
                lease.extend(before, self.length)
        if not kept:
            self._lose(lease)

    def _lose(self, lease: Lease) -> None:
        with self._changed:
            held = self._held.pop(lease.token, None)
        if held is not None:  # else it was released while we asked, and nothing is lost
            lease.lose()


def lock_key(namespace: str, name: str) -> str:
    """Return the key of a sweeper's lock."""
    return f"{namespace}:lock:worker:sweeper:{name}"


def _ms(length: timedelta) -> int:
    return length // timedelta(milliseconds=1)


def _text(number: int | None) -> str:
    return "" if number is None else str(number)
