"""Log lines: their shape, and that no exception's text gets into them, ours or a library's."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import structlog
from dramatiq import Message

from app.core.errors import BootError, describe
from app.core.events import Event, Notification, Severity
from app.core.logging import configure_logging
from app.notify.delivery.send import attempt
from app.notify.routing import Target
from app.notify.sink import Answer
from sinks.noop import Noop, noop
from tests.support.processes import ROOT
from tests.support.rows import FIXED


class NoTransport:
    """A way out that leads nowhere, for a sink that needs none."""

    now = FIXED

    async def post(self, *_: object, **__: object) -> Answer:
        raise AssertionError("nothing may be sent")

    async def get(self, *_: object, **__: object) -> Answer:
        raise AssertionError("nothing may be sent")

    async def mail(self, *_: object, **__: object) -> None:
        raise AssertionError("nothing may be sent")

    async def child(self, *_: object, **__: object) -> int:
        raise AssertionError("nothing may be started")


@pytest.fixture
def stream() -> io.StringIO:
    captured = io.StringIO()
    configure_logging("debug", captured)
    return captured


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_json_line_with_the_go_workers_keys(stream: io.StringIO) -> None:
    log = structlog.get_logger("x")
    log.info("worker ready", addr="a", interval=timedelta(seconds=60), slot=datetime(2026, 1, 1, tzinfo=UTC), none=None)
    (record,) = lines(stream)
    assert list(record) == ["time", "level", "msg", "addr", "interval_seconds", "slot"]
    assert (record["level"], record["msg"], record["interval_seconds"]) == ("INFO", "worker ready", 60.0)
    assert record["slot"] == "2026-01-01T00:00:00Z"
    assert datetime.fromisoformat(record["time"]).tzinfo is not None


@pytest.mark.parametrize(
    ("method", "level"), [("debug", "DEBUG"), ("info", "INFO"), ("warning", "WARN"), ("error", "ERROR")]
)
def test_levels_have_the_go_workers_names(stream: io.StringIO, method: str, level: str) -> None:
    getattr(structlog.get_logger("x"), method)("something")
    getattr(logging.getLogger("library"), method)("something %s", "else")
    assert [record["level"] for record in lines(stream)] == [level, level]
    assert lines(stream)[1]["msg"] == "something else"


def test_exceptions_of_libraries_are_reduced_to_their_names(stream: io.StringIO) -> None:
    library = logging.getLogger("dramatiq.worker.WorkerThread")
    try:
        raise psycopg.errors.UniqueViolation("DETAIL: Key (ref)=(canary) already exists.")
    except psycopg.Error as error:
        library.error("failed: %s", error)
        library.exception("with a traceback")
        structlog.get_logger("x").error("ours", error=error)
        structlog.get_logger("x").exception("ours, with a traceback")
    assert "canary" not in stream.getvalue()
    assert "Traceback" not in stream.getvalue()
    first, second, third, fourth = lines(stream)
    assert first["msg"] == "failed: UniqueViolation 23505"
    assert second["error"] == third["error"] == fourth["error"] == "UniqueViolation 23505"


def test_texts_of_our_own_errors_may_be_shown(stream: io.StringIO) -> None:
    structlog.get_logger("x").error("boot failed", error=BootError("Redis cannot be reached"))
    assert lines(stream)[0]["error"] == "BootError: Redis cannot be reached"
    assert describe(ValueError("canary")) == ("ValueError", None)


@pytest.mark.parametrize(
    ("logger", "text"),
    [
        ("dramatiq.worker.WorkerThread", "Message %s was skipped."),
        ("dramatiq.worker.WorkerThread", "Failed to process message %s with expected exception RetryLater."),
        ("dramatiq.middleware.middleware.SweepAndSinkRetries", "Retrying message %r in 1000 milliseconds."),
        ("dramatiq.middleware.middleware.SweepAndSinkRetries", "Retries exceeded for message %r."),
    ],
)
def test_what_dramatiq_says_in_the_course_of_things_is_no_line(stream: io.StringIO, logger: str, text: str) -> None:
    logging.getLogger(logger).warning(text, "x")
    assert stream.getvalue() == ""


def test_a_message_is_named_by_its_actor(stream: io.StringIO) -> None:
    message: Message[Any] = Message("sinks", "notification-deliver", (17,), {}, {}, message_id="an-id")
    logging.getLogger("dramatiq.worker.WorkerThread").error("Failed to process message %s with x.", message)
    assert lines(stream)[0]["msg"] == "Failed to process message notification-deliver with x."


def test_a_terminal_gets_a_readable_form() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    configure_logging("info", terminal)
    structlog.get_logger("x").info("worker ready", pid=5)
    assert "worker ready" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


@pytest.mark.parametrize("severity", list(Severity))
def test_noop_logs_an_event_at_its_severity(stream: io.StringIO, severity: Severity) -> None:
    note = Notification("an-id", FIXED, Event("wraps-expired", severity, "expired wraps purged", "", {"deleted": 3}))
    asyncio.run(attempt(Target("noop", noop, Noop(), ""), note, NoTransport(), 1))
    (record,) = [line for line in lines(stream) if line["msg"] == "notification"]
    assert record["level"] == severity.upper()
    assert (record["component"], record["title"], record["deleted"]) == ("wraps-expired", "expired wraps purged", 3)
    assert "detail" not in record


def test_who_does_not_read_costs_lines_and_no_time_and_is_told_how_many() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as lines, os.fdopen(writer, "w") as stream:
        configure_logging("info", stream)
        log = structlog.get_logger()
        for number in range(3000):
            log.info("line", number=number, filling="x" * 100)
        os.set_blocking(lines.fileno(), False)
        got = b""
        while piece := lines.read(1 << 20):
            got += piece
        log.info("read again")
        got += lines.read(1 << 20)

    records = [json.loads(line) for line in got.decode().splitlines()]
    *first, told, last = records
    assert [record["number"] for record in first] == list(range(len(first)))
    assert told["msg"] == "log lines dropped: nobody read them"
    assert told["lines"] == 3000 - len(first)
    assert last["msg"] == "read again"


def test_who_has_gone_costs_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        configure_logging("info", stream)
        structlog.get_logger().info("line")


@pytest.mark.parametrize("family", ["stream", "seqpacket"])
def test_a_socket_that_is_not_read_costs_no_time(family: str) -> None:
    kind = socket.SOCK_STREAM if family == "stream" else socket.SOCK_SEQPACKET
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs, os.fdopen(os.dup(ours.fileno()), "w") as stream:
        configure_logging("info", stream)
        for number in range(5000):
            structlog.get_logger().info("line", number=number, filling="x" * 100)
        assert b'"number": 0' in theirs.recv(4096)


LEFT = """
import gc, logging, sys, threading
from app.core.logging import configure_logging

configure_logging()

class Lost:
    def __del__(self):
        raise KeyError("hunter2")

def fail():
    raise KeyError("hunter2")

Lost()
threading.Thread(target=fail).start()
logging.getLogger("library").warning("%d of %s", "hunter2", "hunter2")
raise KeyError("hunter2")
"""


def test_what_nobody_has_caught_is_told_without_its_text() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "hunter2" not in done.stdout + done.stderr
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert sorted(record["msg"] for record in told) == [
        "a log record could not be written: TypeError of library, line 16",
        *["nobody has caught an error"] * 3,
    ]
    assert {record["error"] for record in told if "error" in record} == {"KeyError"}
