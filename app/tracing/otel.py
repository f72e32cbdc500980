"""The one module that knows OpenTelemetry: spans of ours become spans of its SDK, which sends them in the background.

A thread of the SDK's sends them in batches; its queue is bounded, and what does not fit is lost. No sweep waits for it,
and a stop for a second at most. The SDK reads its own `OTEL_*` variables; its log lines, which quote headers and URLs,
are silenced (`app.core.logging`), and one of ours says that a collector cannot be reached.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import requests
import structlog
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.re import parse_env_headers

from app.core import threads
from app.tracing.spans import Fact, Name, Span, failure, fits

log = structlog.get_logger("tracing")

#: How long a stop waits for the last spans to be sent, seconds.
FLUSH_WITHIN = 1.0
#: What spans are for those who read them; all others are internal.
_KINDS = {
    "tick": SpanKind.PRODUCER,
    "run": SpanKind.CONSUMER,
    "delivery": SpanKind.CONSUMER,
    "attempt": SpanKind.CLIENT,
    "poll": SpanKind.CLIENT,
}
_ABOUT = {"delivery": "sink", "attempt": "sink", "poll": "endpoint"}


class OtelTracer:
    """Makes spans and sends them. To be made after the last fork: it has a thread."""

    def __init__(self, *, service: str, version: str, role: str, headers: str) -> None:
        """`headers` are those of requests, as `OTEL_EXPORTER_OTLP_HEADERS` has them; they are secrets."""
        attributes: dict[str, str | int] = {"service.version": version, "sb.role": role, "process.pid": os.getpid()}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            attributes["service.name"] = service
        self._provider = TracerProvider(resource=Resource.create({**attributes}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_Exporter(headers)))
        self._tracer = self._provider.get_tracer("secrets_bridge_worker", version)

    def span(self, name: Name, about: str, facts: Mapping[str, Fact]) -> Span:
        """Return a new span, a part of the one that is under way; it is called after what it is about, too."""
        title = f"{name} {about}" if name != "poll" and fits(about) else name  # endpoints are rows, names are few
        own = {_ABOUT.get(name, "sweeper"): about, **facts}
        kind = _KINDS.get(name, SpanKind.INTERNAL)
        return _OtelSpan(self._tracer.start_span(title, kind=kind, attributes=_attributes(own)))

    def note(self, facts: Mapping[str, Fact]) -> None:
        """Add facts to the span that is under way."""
        trace.get_current_span().set_attributes(_attributes(facts))

    def traceparent(self) -> str | None:
        """Return the name of the span that is under way."""
        here = trace.get_current_span().get_span_context()
        return f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags:02x}" if here.is_valid else None

    def resume(self, traceparent: str) -> object:
        """Have a span of another process be under way in this thread."""
        _, trace_id, span_id, flags = traceparent.split("-")
        there = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
        return context.attach(trace.set_span_in_context(NonRecordingSpan(there)))

    def leave(self, resumed: Any) -> None:
        """Have it be so no longer."""
        context.detach(resumed)

    def close(self) -> None:
        """Send what is left, within FLUSH_WITHIN seconds; what is not sent by then is lost."""
        with suppress(RuntimeError):  # no thread is left
            threads.start("traces", self._shut_down).join(FLUSH_WITHIN)

    def _shut_down(self) -> None:
        with suppress(Exception):  # the process ends in any case
            self._provider.shutdown()


def trace_id() -> str | None:
    """Return the id of the trace that this thread or task works for, None for none."""
    here = trace.get_current_span().get_span_context()
    return f"{here.trace_id:032x}" if here.is_valid else None


class _OtelSpan(Span):
    """A span that is sent when it has ended."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def __enter__(self) -> Self:
        self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self.failed(error)
        context.detach(self._token)
        self._span.end()

    def note(self, **facts: Fact) -> None:
        self._span.set_attributes(_attributes(facts))

    def failed(self, error: BaseException) -> None:
        shown = failure(error)
        if shown is not None:
            self._span.set_status(Status(StatusCode.ERROR))
            self._span.set_attribute("error.type", shown.error)
            if shown.sqlstate is not None:
                self._span.set_attribute("db.response.status_code", shown.sqlstate)


def _attributes(facts: Mapping[str, Fact]) -> dict[str, str | int | float]:
    return {f"sb.{name}": fact for name, fact in facts.items() if fact is not None and fits(fact)}


class _Exporter(SpanExporter):
    """Sends spans, and logs in one line that they cannot be sent, and in one that they can be again."""

    def __init__(self, headers: str) -> None:
        self._session = _Session()
        own = parse_env_headers(headers, liberal=True)
        self._exporter = OTLPSpanExporter(session=self._session, headers=own)
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; those that cannot be sent are lost."""
        self._session.reason = ""
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                log.info("traces are sent again", lost=self._lost)
            self._lost = 0
            return result
        if not self._lost:
            text = "traces cannot be sent and are lost; is the collector of OTEL_EXPORTER_OTLP_ENDPOINT there?"
            log.warning(text, reason=self._session.reason)
        self._lost += len(spans)
        return result

    def shutdown(self) -> None:
        """Have nothing more sent."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


class _Session(requests.Session):
    """Connections to the collector: no proxies and passwords of the environment; remembers how the first one went."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        #: A status, or the class of the error, of the first request of an export. Later ones may have no time left,
        #: which says nothing of the collector.
        self.reason = ""

    def request(self, *args: Any, **words: Any) -> requests.Response:
        """Make one request."""
        try:
            response = super().request(*args, **words)
        except Exception as error:
            self.reason = self.reason or type(error).__name__
            raise
        self.reason = self.reason or str(response.status_code)
        return response
