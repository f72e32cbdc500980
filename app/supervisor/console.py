"""How the lines of a replica's processes are shown: names and colours on a terminal, else JSON records."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from datetime import datetime

_COLOURS = (36, 33, 35, 32, 34, 31)
_LEVELS = {"[CRITICAL]": "ERROR", "[ERROR]": "ERROR", "[WARNING]": "WARN"}


class Multiplexer:
    """Writes lines to stderr: prefixed and coloured on a terminal, else JSON records, made so where they are not."""

    def __init__(self, names: list[str]) -> None:
        self._colours = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}
        self._width = max(map(len, (*names, "release")))
        self._human = sys.stderr.isatty()

    def __call__(self, name: str, line: str) -> None:
        """Show one line of the process `name`."""
        if self._human:
            line = f"\x1b[{self._colours.get(name, 37)}m{name:<{self._width}}\x1b[0m | {line}"
        elif not _is_record(line):
            now = datetime.now().astimezone().isoformat(timespec="microseconds")
            line = json.dumps({"time": now, "level": _level(line), "msg": line, "process": name})
        with suppress(OSError):  # the reader of our lines is gone: no reason to stop working
            print(line, file=sys.stderr, flush=True)


def _is_record(line: str) -> bool:
    try:
        return line.startswith("{") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _level(line: str) -> str:
    """Return the level of a line: by Dramatiq's marks, and by how our own settings and Python report errors."""
    if line.startswith(("config error", "Traceback")):
        return "ERROR"
    return next((level for mark, level in _LEVELS.items() if mark in line), "INFO")
