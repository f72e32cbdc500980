"""The variables of OpenTelemetry that its SDK reads, looked at before it does: it takes some with a traceback.

Set for a whole cluster they must not stop a worker that sends no traces: nothing is looked at while traces are off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import SecretStr, model_validator

from app.core.config import Settings, name_of, variable

SAMPLERS = (
    *("always_on", "always_off", "traceidratio"),
    *("parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio"),
)
_MODULES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


def _text(name: str, meaning: str, default: str | None = None, *, secret: bool = False) -> Any:
    return variable(name, meaning=meaning, default=default, secret=secret)


class TracingSettings(Settings):
    """Whether spans are sent, where to, and which."""

    endpoint: str | None = _text(
        "OTEL_EXPORTER_OTLP_ENDPOINT", "the URL of a collector that takes OTLP over HTTP; switches traces on"
    )
    traces_endpoint: str | None = _text(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "the same for traces alone, with its path (`/v1/traces`)"
    )
    disabled: str | None = _text("OTEL_SDK_DISABLED", "`true` switches traces off")
    exporter: str | None = _text("OTEL_TRACES_EXPORTER", "`none` switches traces off", "otlp")
    protocol: str | None = _text("OTEL_EXPORTER_OTLP_PROTOCOL", "only `http/protobuf` is known", "http/protobuf")
    traces_protocol: str | None = _text("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "the same for traces alone")
    headers: SecretStr | None = _text(
        "OTEL_EXPORTER_OTLP_HEADERS", "headers of requests to the collector, `name=value,...`", secret=True
    )
    traces_headers: SecretStr | None = _text(
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "the same for traces alone", secret=True
    )
    timeout: str | None = _text("OTEL_EXPORTER_OTLP_TIMEOUT", "of a request with its retries, seconds", "10")
    traces_timeout: str | None = _text("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "the same for traces alone")
    compression: str | None = _text("OTEL_EXPORTER_OTLP_COMPRESSION", "`none`, `gzip` or `deflate`", "none")
    traces_compression: str | None = _text("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "the same for traces alone")
    service: str | None = _text("OTEL_SERVICE_NAME", "what the worker is called in traces", "secrets-bridge-worker")
    resource: str | None = _text("OTEL_RESOURCE_ATTRIBUTES", "further attributes of the process, `name=value,...`")
    sampler: str | None = _text("OTEL_TRACES_SAMPLER", f"one of {', '.join(SAMPLERS)}", "parentbased_always_on")
    share: str | None = _text("OTEL_TRACES_SAMPLER_ARG", "the share of traces that `traceidratio` takes, 0 to 1")
    delay: str | None = _text(
        "OTEL_BSP_SCHEDULE_DELAY", "how long spans wait to be sent together, milliseconds", "5000"
    )
    queue: str | None = _text("OTEL_BSP_MAX_QUEUE_SIZE", "spans that may wait; more are lost", "2048")
    batch: str | None = _text("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "spans of one request, at most", "512")

    @property
    def enabled(self) -> bool:
        """Whether traces are sent."""
        off = (self.disabled or "").strip().lower() == "true" or self.exporter == "none"
        return not off and bool(self.endpoint or self.traces_endpoint)

    @property
    def request_headers(self) -> str:
        """The headers of requests, those for traces alone if there are any."""
        headers = self.traces_headers or self.headers
        return headers.get_secret_value() if headers else ""

    @model_validator(mode="after")
    def _valid(self) -> Self:
        if self.enabled and (problems := list(self._problems())):
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        """Yield what is wrong, a line each."""
        if not _installed():
            name = self._name("endpoint" if self.endpoint else "traces_endpoint")
            install = "pip install 'secrets-bridge-worker[otel]'"
            yield f"{name}: needs OpenTelemetry; {install}, or set OTEL_TRACES_EXPORTER=none"
        for field, (fits, accepted) in _ACCEPTED.items():
            twin = f"traces_{field}"
            chosen = twin if getattr(self, twin, None) else field
            value = getattr(self, chosen)
            if value is not None and not fits(value):
                yield f"{self._name(chosen)}: not valid; accepted: {accepted}"
        if "traceidratio" in (self.sampler or "") and not _is_share(self.share or "1"):
            yield f"{self._name('share')}: not valid; accepted: a number from 0 to 1"
        if _is_size(self.queue or "") and _is_size(self.batch or "") and int(self.batch or 0) > int(self.queue or 0):
            yield f"{self._name('batch')}: not valid; accepted: no more than {self._name('queue')}"

    def _name(self, field: str) -> str:
        return name_of(type(self), field)


def _installed() -> bool:
    try:
        return all(find_spec(module) for module in _MODULES)
    except ModuleNotFoundError:  # of a package above it
        return False


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        return False


def _is_number(text: str, least: float, most: float) -> bool:
    try:
        return least <= float(text) <= most
    except ValueError:
        return False


def _is_share(text: str) -> bool:
    return _is_number(text, 0, 1)


def _is_size(text: str) -> bool:
    return re.fullmatch("[1-9][0-9]{0,5}", text) is not None


#: What of each field the SDK takes; where there is one for traces alone, that counts.
_ACCEPTED: dict[str, tuple[Callable[[str], bool], str]] = {
    "endpoint": (_is_url, "an http:// or https:// URL such as http://collector:4318"),
    "exporter": (lambda text: text == "otlp", "otlp, none"),
    "protocol": (lambda text: text == "http/protobuf", "http/protobuf, whose port is 4318 by custom"),
    "timeout": (lambda text: _is_number(text, 0.001, 3600), "seconds, such as 10"),
    "compression": (lambda text: text.lower() in ("none", "gzip", "deflate"), "none, gzip, deflate"),
    "sampler": (lambda text: text.lower() in SAMPLERS, ", ".join(SAMPLERS)),
    "delay": (_is_size, "milliseconds, 1 to 999999"),
    "queue": (_is_size, "1 to 999999"),
    "batch": (_is_size, "1 to 999999"),
}
