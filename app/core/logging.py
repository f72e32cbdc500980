"""Log lines: JSON on stderr, one a record; readable and coloured when stderr is a terminal.

Keys are those of the Go worker: `time`, `level` (DEBUG, INFO, WARN, ERROR), `msg`, then flat attributes. A duration is
in seconds, and its key says so: `interval_seconds` (the Go worker: `interval`, in nanoseconds). Records of libraries go
through the same handler, where exceptions are reduced to their class name and SQLSTATE: a driver's message can quote a
row, a host or a URL. So is what nobody has caught, of which Python would print the message.

Nobody waits for who reads them: see `app.supervisor.output`.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, TextIO, cast

# structlog loads rich where it is installed, for tracebacks on a terminal. There are none here, and it is 4 MiB.
_modules = cast("dict[str, object]", sys.modules)
_without_rich = _modules.setdefault("rich", None) is None
import structlog  # noqa: E402 - see above
from structlog.types import EventDict, Processor  # noqa: E402

if _without_rich:
    del _modules["rich"]

from app.core.errors import WorkerError, describe, raised_at  # noqa: E402
from app.supervisor.output import Output  # noqa: E402

_LEVELS = {"debug": "DEBUG", "info": "INFO", "warning": "WARN", "error": "ERROR", "critical": "ERROR"}
_STDLIB = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_LEAKING = (
    "psycopg",
    "redis",
    "httpx",
    "aiosmtplib",
    "mail.log",
    "asyncio",
    "urllib3",
    "requests",
    "apprise",
    "opentelemetry",
)
#: Returns the id of the trace that the caller works for, where traces are on.
_trace_id: Callable[[], str | None] | None = None


class _ReduceExceptions(logging.Filter):
    """Replaces the exceptions of a library's record by their names, before anything renders them."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_named(arg) if isinstance(arg, BaseException) else arg for arg in record.args)
        if record.exc_info:
            record.error = _from_exc_info(record.exc_info)
            record.exc_info = record.exc_text = None
        return True


#: What Dramatiq says of messages in the course of things, by their ids: a skipped one is how a replica loses a race,
#: which is a metric; what an actor returns is for the lock's middleware; failures and retries have lines of our own,
#: with the name of the sweeper or sink.
_ROUTINE = (
    "was skipped",
    "returned a value that is not None",
    "with expected exception",
    "Retrying message",
    "Retries exceeded for message",
    "Aborting message",
)


class _Dramatiq(logging.Filter):
    """Drops what Dramatiq says in the course of things, and names a message by its actor, not by its arguments."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("dramatiq"):
            return True
        if isinstance(record.args, tuple):
            record.args = tuple(getattr(arg, "actor_name", arg) for arg in record.args)
        return not any(text in str(record.msg) for text in _ROUTINE)


class LogLines(logging.Handler):
    """Writes records as lines. Of one that cannot be written it says whose it is; Python would print its values."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._output = Output(stream)

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, whatever it is."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - of whatever a library's arguments are
            lost = logging.LogRecord("worker", logging.ERROR, "", 0, "", (), None)
            lost.msg = "a log record could not be written: %s of %s, line %d"
            lost.args = (type(error).__name__, record.name, record.lineno)
            line = self.format(lost)
        self._output.write(f"{line}\n")


def configure_logging(level: str = "info", stream: TextIO | None = None) -> None:
    """Write every record of this process from `level` (debug, info, warn, error) up to `stream`, by default to stderr.

    The real stderr, not sys.stderr: Dramatiq puts a pipe to its main process there, and what is in that pipe when
    the main process ends is lost.
    """
    stream = stream or cast("TextIO", sys.__stderr__ or sys.stderr)
    human = stream.isatty()
    final: list[Processor] = [_human] if human else [_names, structlog.processors.JSONRenderer(sort_keys=False)]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[_foreign, structlog.stdlib.add_log_level, _time, _traced],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
    )
    handler = LogLines(stream)
    handler.setFormatter(formatter)
    handler.addFilter(_ReduceExceptions())
    handler.addFilter(_Dramatiq())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_STDLIB[level])
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            _time,
            _plain,
            _traced,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    # These log hosts, URLs, and texts of servers, which may quote secrets; our own lines say what matters.
    for name in _LEAKING:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # One line for each tick sent adds nothing to the lines of the runs.
    logging.getLogger("periodiq").setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def add_trace_ids(trace_id: Callable[[], str | None]) -> None:
    """Have each line that is written for a trace carry its id, as `trace_id` returns it."""
    global _trace_id  # noqa: PLW0603 - a process has one, from its boot on
    _trace_id = trace_id


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """Log what nobody has caught, by its name and the place where it was raised."""
    if issubclass(kind, KeyboardInterrupt | SystemExit):
        sys.__excepthook__(kind, kind(), trace)
        return
    end = raised_at(trace)
    place = f"{end.tb_frame.f_code.co_filename}:{end.tb_lineno}" if end else None
    named = _named(error) if error is not None else kind.__name__
    structlog.get_logger("worker").error("nobody has caught an error", error=named, at=place)


def _traced(_logger: object, _name: str, event: EventDict) -> EventDict:
    if _trace_id is not None and (number := _trace_id()) is not None:
        event["trace_id"] = number
    return event


def _time(_logger: object, _name: str, event: EventDict) -> EventDict:
    event["time"] = datetime.now().astimezone().isoformat(timespec="microseconds")
    return event


def _plain(_logger: object, _name: str, event: EventDict) -> EventDict:
    """Reduce values to JSON's types, and an attached exception to its name."""
    if (info := event.pop("exc_info", None)) is not None:
        event.setdefault("error", _from_exc_info(info))
    return dict(_attribute(key, value) for key, value in event.items() if value is not None)


def _attribute(key: str, value: Any) -> tuple[str, Any]:
    if isinstance(value, datetime):
        return key, value.isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return f"{key}_seconds", value.total_seconds()
    return key, _named(value) if isinstance(value, BaseException) else value


def _foreign(_logger: object, _name: str, event: EventDict) -> EventDict:
    """Reduce a library's record to its text, its logger and the name of its exception."""
    record: logging.LogRecord = event["_record"]
    event.pop("exc_info", None)
    event["logger"] = record.name
    if (error := getattr(record, "error", None)) is not None:
        event["error"] = error
    return event


def _names(_logger: object, _name: str, event: EventDict) -> EventDict:
    head = {"time": event.pop("time"), "level": _LEVELS[event.pop("level")], "msg": event.pop("event")}
    return {**head, **event}


def _human(logger: object, name: str, event: EventDict) -> str:
    event["timestamp"] = event.pop("time")[11:23]
    render = structlog.dev.ConsoleRenderer(colors=True, pad_event_to=40)
    return str(render(logger, name, event))


def _named(error: BaseException) -> str:
    """Return an exception's name; only our own have texts that may be shown."""
    if isinstance(error, WorkerError):
        return f"{type(error).__name__}: {error}"
    failure = describe(error)
    return failure.error if failure.sqlstate is None else f"{failure.error} {failure.sqlstate}"


def _from_exc_info(info: Any) -> str | None:
    if isinstance(info, BaseException):
        return _named(info)
    error = info[1] if isinstance(info, tuple) else sys.exc_info()[1]
    return None if error is None else _named(error)
