"""A collector: an HTTP server that reads what arrives as OTLP, and knows each span by its id."""

from __future__ import annotations

import gzip
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.http_server import Receiver, Seen

PREFIX = "sb."


class Sent(NamedTuple):
    """A span that arrived."""

    name: str
    id: bytes
    parent: bytes
    trace: bytes
    role: str
    facts: dict[str, Any]
    failed: bool
    events: int

    @property
    def about(self) -> Any:
        """The sweeper or receiver that it is about."""
        return self.facts.get("sweeper") or self.facts.get("sink")


class Collector(Receiver):
    """Takes spans."""

    @property
    def url_of_everything(self) -> dict[str, str]:
        """The variables that have spans sent here, at once."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}

    @property
    def spans(self) -> list[Sent]:
        """All that has arrived."""
        return [span for seen in list(self.seen) for span in _read(seen)]

    def named(self, name: str, about: str = "") -> list[Sent]:
        """Return the spans of a name, about one sweeper or receiver."""
        return [span for span in self.spans if span.name.split()[0] == name and about in ("", span.about)]

    def parent(self, span: Sent) -> Sent | None:
        """Return the span that another one is a part of, if it has arrived."""
        return next((other for other in self.spans if other.id == span.parent), None)


def body(seen: Seen) -> bytes:
    """Return what was sent, unpacked."""
    return gzip.decompress(seen.body) if seen.headers.get("content-encoding") == "gzip" else seen.body


def _read(seen: Seen) -> list[Sent]:
    request = ExportTraceServiceRequest.FromString(body(seen))
    return [
        _sent(span, _facts(resource.resource.attributes)["role"])
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _sent(span: Span, role: str) -> Sent:
    failed = span.status.code == span.status.STATUS_CODE_ERROR
    ids = span.span_id, span.parent_span_id, span.trace_id
    return Sent(span.name, *ids, role, _facts(span.attributes), failed, len(span.events))


def _facts(attributes: Any) -> dict[str, Any]:
    return {
        attribute.key.removeprefix(PREFIX): getattr(attribute.value, attribute.value.WhichOneof("value"))
        for attribute in attributes
    }
