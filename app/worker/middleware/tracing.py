"""Traces go with messages: what is sent while a span is under way is a part of it, wherever it is worked on."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from dramatiq.middleware import Middleware

from app.tracing import spans

if TYPE_CHECKING:
    from dramatiq import Broker, Message, Worker
    from dramatiq.broker import MessageProxy

_resumed: ContextVar[object] = ContextVar("resumed", default=None)


class Tracing(Middleware):
    """Carries the name of a span (`traceparent`) from who sends a message to who works on it.

    Ahead of retries and the lock in the list: what these do and log afterwards is a part of it, too.
    """

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        """Put the span that is under way into the message; a retry keeps the one that it has."""
        here = spans.traceparent()
        if here is not None:
            message.options.setdefault("traceparent", here)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        """Go on with the sender's span; what comes out of Redis has been looked at (`app.worker.tick_options`)."""
        there = message.options.get("traceparent")
        if there is not None:
            _resumed.set(spans.resume(there))

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Leave it."""
        resumed = _resumed.get()
        if resumed is not None:
            _resumed.set(None)
            spans.leave(resumed)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        """Leave it."""
        self.after_process_message(broker, message)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        """Send what is left, for a second at most."""
        spans.close()
