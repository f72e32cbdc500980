"""What switches traces on, and what of OpenTelemetry's variables is refused before its SDK gets to see it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from app.core.errors import ConfigError, Fenced, NotDue, Reason, SweepFailed, describe
from app.tracing import spans
from app.tracing.settings import TracingSettings
from app.tracing.spans import fits
from app.worker.tick_options import known
from tests.support.processes import ROOT, environment, finished

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
HERE = "http://127.0.0.1:4318"
WHOLE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
# redis-py loads the part of OpenTelemetry for metrics by itself, where that is installed.
LOADED = """
import json, sys
loaded_by = set()

class Watch:
    def find_spec(self, name, *_):
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if name.partition(".")[0] in ("opentelemetry", "requests"):
            loaded_by.add(frame.f_globals["__name__"].partition(".")[0])

sys.meta_path.insert(0, Watch())
sys.argv[:] = ["periodiq", "app.actors"]
import app.actors, app.cli.main, app.tracing.start
theirs = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "requests")
sdk = [name for name in sys.modules if name.startswith(theirs)]
print(json.dumps([sorted(loaded_by - {"opentelemetry", "redis"}), sdk]))
"""


def _loaded(**more: str) -> list[list[str]]:
    env = environment("postgresql://127.0.0.1:1/x", "redis://127.0.0.1:1", PYTHONPATH=str(ROOT), **more)
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    names: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return names


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {ENDPOINT: HERE, "OTEL_SDK_DISABLED": "True"},
        {ENDPOINT: HERE, "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_SERVICE_NAME": "worker", "OTEL_TRACES_SAMPLER": "of-another-language"},
    ],
)
def test_while_traces_are_off_opentelemetry_is_not_loaded(variables: dict[str, str]) -> None:
    assert _loaded(**variables) == [[], []]


@pytest.mark.parametrize("name", [ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_an_endpoint_switches_them_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not TracingSettings.read().enabled
    monkeypatch.setenv(name, HERE)
    assert TracingSettings.read().enabled


def test_without_the_extra_a_boot_ends_with_one_line(tmp_path: Path) -> None:
    found = find_spec("opentelemetry.sdk.trace")
    assert found is not None
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text(
        "import sys\nclass Hide:\n    def find_spec(self, name, *_):\n"
        "        if name.startswith('opentelemetry'): raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    env = environment("postgresql://127.0.0.1:1/x", "redis://127.0.0.1:1", **{ENDPOINT: HERE})
    for words in (["periodiq", "app.actors"], ["sb-worker", "config"]):
        done = finished(words, {**env, "PYTHONPATH": str(tmp_path)})
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.endswith(  # periodiq says first that it starts
            f"config error: {ENDPOINT}: needs OpenTelemetry; pip install 'secrets-bridge-worker[otel]', "
            "or set OTEL_TRACES_EXPORTER=none\n"
        )


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        (ENDPOINT, "collector:4317", "an http:// or https:// URL"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://:4318", "an http:// or https:// URL"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "console", "otlp, none"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "seconds, such as 10"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "nan", "seconds, such as 10"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "none, gzip, deflate"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "always_on"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0", "milliseconds"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "1 to 999999"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "many", "1 to 999999"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5000", "no more than OTEL_BSP_MAX_QUEUE_SIZE"),
    ],
)
def test_a_value_that_the_sdk_does_not_take_is_a_line(
    name: str, value: str, accepted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, HERE)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        TracingSettings.read()
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name}: not valid; accepted: ")
    assert accepted in problem
    assert value not in problem.replace(accepted, "").replace("10", "")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    TracingSettings.read()


@pytest.mark.parametrize("share", ["2", "half", ""])
def test_the_share_of_traces_is_a_number(share: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, HERE)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", share)
    if not share:  # all of them, as the SDK has it
        TracingSettings.read()
        return
    with pytest.raises(ConfigError, match="OTEL_TRACES_SAMPLER_ARG: not valid; accepted: a number from 0 to 1"):
        TracingSettings.read()


def test_what_only_the_sdk_refuses_ends_a_boot_with_a_line() -> None:
    env = environment("postgresql://127.0.0.1:1/x", "redis://127.0.0.1:1", **{ENDPOINT: HERE})
    done = finished(["periodiq", "app.actors"], {**env, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "canary"})
    assert done.returncode == 1
    (record,) = [json.loads(line) for line in done.stderr.splitlines() if '"ERROR"' in line]
    assert record["error"] == "traces: OpenTelemetry does not start (ValueError); look at the OTEL_ variables"
    assert "canary" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        *("", "00", WHOLE.upper(), f" {WHOLE}", f"{WHOLE}\n", f"{WHOLE}-more", WHOLE.replace("00-", "01-", 1)),
        *(WHOLE.replace("b7ad6b7169203331", "0" * 16), WHOLE[:-2] + "ff", "00-" + "0" * 32 + "-b7ad6b7169203331-01"),
        *(17, None, [WHOLE], {"traceparent": WHOLE}),
    ],
)
def test_a_message_names_a_span_in_one_form_or_none(text: object) -> None:
    assert known({"traceparent": text}) == {}
    assert known({"traceparent": WHOLE, "pipe_target": "x"}) == {"traceparent": WHOLE}


@pytest.mark.parametrize(
    "fact", ["agents-stale", "email:3f2a9c1b", "23514", "SinkUnavailable", 0, 1.5, True, 2**63 - 1]
)
def test_names_and_numbers_fit(fact: str | float) -> None:
    assert fits(fact)


@pytest.mark.parametrize(
    "fact",
    ["", "https://argo", "a@b", "SELECT 1", "postgresql://u:p@h/d", "x" * 101, "ä", "a\n", None, 2**63, "key=value"],
)
def test_what_may_be_a_url_a_statement_or_a_text_does_not(fact: str | float | None) -> None:
    assert not fits(fact)


def test_a_tick_with_nothing_to_do_is_no_failure() -> None:
    assert spans.failure(NotDue(Reason.SUPERSEDED)) is None
    assert spans.failure(SweepFailed(describe(KeyError("canary")))) == ("KeyError", None)
    assert spans.failure(Fenced()) == ("Fenced", None)


def test_spans_of_nobody_do_nothing() -> None:
    with spans.span("run", "agents-stale", slot=1) as span:
        span.note(changed=1)
        span.failed(KeyError())
        spans.note(changed=1)
        assert spans.traceparent() is None
    spans.leave(spans.resume(WHOLE))
    spans.close()
