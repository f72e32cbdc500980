"""How the lines of a replica's processes are shown: names and colours on a terminal, else JSON records."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime

from app.supervisor.output import Output

_COLOURS = (36, 33, 35, 32, 34, 31)
_LEVELS = {"[CRITICAL]": "ERROR", "[ERROR]": "ERROR", "[WARNING]": "WARN"}
#: How our own settings, click, Python, its fault handler, shells, the loader and C libraries begin what went wrong; and
#: what Dramatiq's main process says of its workers, with --skip-logging without a mark.
_ERROR = re.compile(
    r"config error|Traceback|Error:|Usage:|Exception |Segmentation fault|Aborted|Bus error|Illegal instruction|"
    r"(?i:(\S+: )?(fatal|error|critical))\b|\*\*\* |[a-z_]+\(\): |double free|terminate called|.*: Assertion |"
    r"\S+: (can't open|symbol lookup error|(\d+: )?\S+: not found)|Out of memory|"
    r"[A-Za-z_.]+(Error|Exception|Exit|Interrupt)(:|$)|Killed$|(Current t|T)hread 0x|\s+File |"
    r"Worker with PID \d+ exited|Failed to import|Broker connection failed",
)
_WARNING = re.compile(r"(\S+: )?([A-Za-z]*Warning|WARNING|WARN): |Killing (worker|fork) process|Failed to send")


class Multiplexer:
    """Writes lines to stderr: prefixed and coloured on a terminal, else JSON records, made so where they are not."""

    def __init__(self, names: list[str]) -> None:
        self._colours = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}
        self._width = max(map(len, (*names, "release")))
        self._human = sys.stderr.isatty()
        self._output = Output(sys.stderr)
        #: The processes that are in the middle of a traceback, which ends with its first line that is not indented.
        self._in_traceback: set[str] = set()

    def __call__(self, name: str, line: str) -> None:
        """Show one line of the process `name`."""
        if self._human:
            line = f"\x1b[{self._colours.get(name, 37)}m{name:<{self._width}}\x1b[0m | {line}"
        elif not _is_record(line):
            now = datetime.now().astimezone().isoformat(timespec="microseconds")
            level = _level(line, in_traceback=name in self._in_traceback)
            self._follow(name, line)
            line = json.dumps({"time": now, "level": level, "msg": line, "process": name})
        self._output.write(f"{line}\n")

    def _follow(self, name: str, line: str) -> None:
        if line.startswith("Traceback"):
            self._in_traceback.add(name)
        elif line and not line[0].isspace():
            self._in_traceback.discard(name)


def _is_record(line: str) -> bool:
    try:
        return line.startswith("{") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _level(line: str, *, in_traceback: bool) -> str:
    """Return the level of a line that is no record: by Dramatiq's marks, and by how programs report errors."""
    if in_traceback or _ERROR.match(line):
        return "ERROR"
    marked = next((level for mark, level in _LEVELS.items() if mark in line), "INFO")
    return "WARN" if marked == "INFO" and _WARNING.match(line) else marked
