"""The attempts of a batch, side by side on one event loop, each under a deadline of its own.

How many are under way at once begins at one, and grows with each that is answered: a receiver that refuses for good, or
asks to be left alone, has been asked once. It grows with time as well, so that none waits for one that hangs. Nothing
is begun after the breaker's number of failures in a row, nor so late that the lease could end before the attempt.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from app.core.errors import Fault, SinkRejected, SinkUnavailable, describe
from app.notify.delivery.batch import Attempted, Batch, ClaimedDelivery
from app.notify.policy import BREAKER_FAILURES
from app.tracing import spans

if TYPE_CHECKING:
    from app.core.events import Notification
    from app.notify.routing import Target
    from app.notify.sink import Transport

log = structlog.get_logger("notification")

#: Attempts of one batch that are under way at once, at most.
SIDE_BY_SIDE = 8
#: Seconds after which another one is begun although none has ended, and what has ended is settled although others have
#: not.
PATIENCE = 0.25
#: Seconds that an attempt has to tidy up after its deadline.
TIDY_UP = 1.0

#: Settles attempts while others are under way, and gives back what will not be begun; told whether nothing else will.
Settle = Callable[[Sequence[Attempted], Sequence[ClaimedDelivery], bool], None]


async def send_side_by_side(
    batch: Batch, transport: Transport, *, seconds: float, may_begin: Callable[[], bool], settle: Settle
) -> tuple[list[Attempted], list[ClaimedDelivery]]:
    """Attempt a batch, each delivery within so many `seconds`, and none begun once it is not `may_begin`.

    Return how the last attempts ended, and what was not begun, but for what `settle`, called from another thread, was
    given while others were under way.
    """
    waiting, ended, unsent = deque(batch.deliveries), list[Attempted](), list[ClaimedDelivery]()
    window = _Window(batch.failures, 1 if batch.target.sink.alone else SIDE_BY_SIDE)
    running: set[asyncio.Task[Attempted]] = set()
    settled_at = time.monotonic()
    try:
        while True:
            while waiting and window.allows(len(running)) and may_begin():
                running.add(asyncio.ensure_future(_attempted(batch.target, waiting.popleft(), transport, seconds)))
            if window.closed or not may_begin():
                unsent += waiting
                waiting.clear()
            if not running:
                return ended, unsent
            done, running = await asyncio.wait(running, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                ended.append(task.result())
                window.observe(task.result().error)
            if not done:
                window.size += 1
            if running and (ended or unsent) and time.monotonic() - settled_at >= PATIENCE:
                await asyncio.to_thread(settle, ended, unsent, not waiting)
                ended, unsent, settled_at = [], [], time.monotonic()
    finally:
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=2 * TIDY_UP)


class _Window:
    """How many attempts may be under way at once."""

    def __init__(self, failures: int, most: int) -> None:
        """`failures` are those in a row before; a batch that is begun although the breaker is open is its probe."""
        self.size = 1
        self._most = most
        self._failures = min(failures, BREAKER_FAILURES - 1)
        self._refused = False

    @property
    def closed(self) -> bool:
        """Whether none may be begun: the receiver has failed too often, or wants to be left alone."""
        return self._refused or self._failures >= BREAKER_FAILURES

    def allows(self, running: int) -> bool:
        """Return whether another one may be begun while so many are under way."""
        return not self.closed and running < min(self.size, self._most)

    def observe(self, error: SinkRejected | SinkUnavailable | None) -> None:
        """Take note of how one ended."""
        if isinstance(error, SinkUnavailable):
            self._refused = self._refused or error.fault is Fault.RATE_LIMITED
            self._failures += 1
        else:
            self._refused = self._refused or (error is not None and error.off)
            self._failures = 0
            self.size += 1


async def _attempted(target: Target, delivery: ClaimedDelivery, transport: Transport, seconds: float) -> Attempted:
    started = time.perf_counter()
    number, event_id = delivery.attempt, delivery.notification.id
    with spans.span("attempt", target.name, attempt=number, events=delivery.events, event_id=event_id) as span:
        try:
            await attempt(target, delivery.notification, transport, seconds)
        except (SinkRejected, SinkUnavailable) as error:
            span.failed(error)
            span.note(reason=error.fault.value, code=error.code)
            return Attempted(delivery, error, time.perf_counter() - started)
        return Attempted(delivery, None, time.perf_counter() - started)


async def attempt(target: Target, notification: Notification, transport: Transport, seconds: float) -> None:
    """Send once, within so many seconds in all. Raises SinkRejected or SinkUnavailable, and nothing else.

    An attempt that is cut has another second to tidy up; one that hangs in that is left behind.
    """
    exchange = target.sink.send(notification, target.settings, target.receiver, transport)
    await within(seconds, exchange, target.sink.name)


async def within(seconds: float, exchange: Awaitable[None], sink: str) -> None:
    """Do one exchange with a receiver within so many seconds. Raises as `attempt` does."""
    sending = asyncio.ensure_future(exchange)
    try:
        await _until(sending, seconds)
        if sending.done():
            sending.result()
            return
        sending.cancel()
        await _until(sending, TIDY_UP)
        if not sending.done():
            log.error("attempt does not end; it is left behind", sink=sink)
        elif not sending.cancelled() and sending.exception() is None:
            return  # it had got through
        raise SinkUnavailable(Fault.TIMEOUT)  # noqa: TRY301 - as if the sink had raised it
    except (SinkRejected, SinkUnavailable):
        raise
    except TimeoutError:
        raise SinkUnavailable(Fault.TIMEOUT) from None
    except Exception as error:  # noqa: BLE001 - a bug in a sink must not lose a notification
        log.error("sink failed in a way of its own", sink=sink, error=describe(error).error)
        raise SinkUnavailable(Fault.PROTOCOL) from None


async def _until(task: asyncio.Future[None], seconds: float) -> None:
    """Wait for a task, at most so many seconds; cancel it when the one who waits is cancelled."""
    try:
        await asyncio.wait([task], timeout=seconds)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task], timeout=TIDY_UP)
        raise
