"""Runs commands of ours, each in a process that is forked when all is imported: many of them take a moment.

Reads one JSON object a line (`argv`, `env`, `out`) and prints `argv`'s status when it has ended.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import app.cli.main
import app.notify.transport
import app.worker.assembly


def become(argv: list[str], env: dict[str, str], out: str) -> int:
    """Be the command, in a process of its own, and return its status."""
    number = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(number, stream)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = argv
    try:
        app.cli.main.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001 - what Python does with it is what is looked at
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def main() -> None:
    """Run what is asked for, until there is nothing more to read."""
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        if (pid := os.fork()) == 0:
            status = 1
            try:
                status = become(**asked)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
