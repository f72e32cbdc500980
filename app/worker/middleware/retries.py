"""Retries: a sweep's by its own wish, a notification's by what its sink answered.

A sink that refused for good (4xx) is not asked again; one that could not take it (5xx, time-outs, connections) is,
after a wait that doubles. The wait is a delayed message in Redis; should Redis lose it, the relay finds the delivery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis
import structlog
from dramatiq.errors import Retry
from dramatiq.middleware import Retries

from app.core.errors import describe
from app.notify.notifier import RetryLater

if TYPE_CHECKING:
    from dramatiq import Broker
    from dramatiq.broker import MessageProxy

log = structlog.get_logger("notification")


class SweepAndSinkRetries(Retries):
    """Dramatiq's own retries for what raises Retry, and new messages for deliveries that are to be tried again."""

    def __init__(self) -> None:
        super().__init__(retry_when=lambda _retries, error: isinstance(error, Retry))

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Send the delivery's next message, or leave it to Dramatiq."""
        if not isinstance(exception, RetryLater):
            super().after_process_message(broker, message, result=result, exception=exception)  # type: ignore[no-untyped-call]
            return
        actor = broker.get_actor(message.actor_name)
        try:
            for delivery, wait in exception.waits.items():
                broker.enqueue(actor.message(delivery), delay=int(wait.total_seconds() * 1000))
        except redis.RedisError as error:
            log.warning("retry not sent; the relay will", error=describe(error).error)
