"""How the demo ends: at the first Ctrl-C, with a line that says so, with status 0, and with nothing left behind.

Make would end with an error of its own at a Ctrl-C. So in a terminal the demo is a group of its own, which alone gets
it. What is left after kill -9 is swept up by a shell that waits for that.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

LINE = "ending: what runs is finished, then all is stopped (a few seconds)"
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: The group that had the terminal before, 0 for none.
_before = 0
#: Whether a stop has come.
_asked = False
#: Whether it only says so, and raises nothing.
_deferred = False

# Waits for the end of its input, that is of the demo; then until PostgreSQL has gone, which the kernel has told to.
# What was cut while it made its cluster may still write for a moment: then a directory is not empty once more.
_SWEEP = """
trap '' INT TERM HUP
cat
left=150
while [ -e "$1/pg/data/postmaster.pid" ] && [ $left -gt 0 ]; do left=$((left - 1)); sleep 0.2; done
until rm -rf "$1" || [ $left -le 0 ]; do left=$((left - 1)); sleep 0.2; done
"""


def take_the_terminal() -> None:
    """Be the group that a terminal's Ctrl-C is for, if there is one; Ctrl-Z, which only that could undo, is ignored."""
    global _before  # noqa: PLW0603 - a process has one terminal
    with suppress(OSError):
        if os.tcgetpgrp(0) == os.getpgrp() != os.getpid():
            before = os.getpgrp()
            os.setpgid(0, 0)
            _set_group(os.getpgrp())
            signal.signal(signal.SIGTSTP, signal.SIG_IGN)
            _before = before


def give_the_terminal_back() -> None:
    """Have the terminal be for whoever had it."""
    with suppress(OSError):
        if _before:
            _set_group(_before)


def _set_group(group: int) -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])  # else one in the background is stopped by it
    try:
        os.tcsetpgrp(0, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def listen() -> None:
    """Have the first stop raise KeyboardInterrupt, after a line; those after it would only cut the clean-up.

    One that lands in a callback around a fork is lost there, with a traceback of Python's that helps nobody: `check`
    raises it again.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        global _asked  # noqa: PLW0603 - a process ends once
        _asked = True
        for number in _STOPS:
            signal.signal(number, signal.SIG_IGN)
        say()
        if not _deferred:
            raise KeyboardInterrupt

    def lost(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = lost
    for number in _STOPS:
        signal.signal(number, end)


def defer() -> None:
    """Have a stop raise nothing from now on; `asked` and `check` tell of it.

    One that was raised within psycopg would leave its connection in the middle of a statement, of no more use.
    """
    global _deferred  # noqa: PLW0603 - a process ends once
    _deferred = True


def asked() -> bool:
    """Return whether a stop has come."""
    return _asked


def check() -> None:
    """Raise KeyboardInterrupt if a stop has come."""
    if _asked:
        raise KeyboardInterrupt


def say() -> None:
    """Print that the demo is ending."""
    with suppress(OSError):
        print(f"\n{LINE}", file=sys.stderr, flush=True)


@contextmanager
def swept(prefix: str) -> Iterator[Path]:
    """Make a directory for all that the demo writes, and remove it at the end of the body, or of this process."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # until there is somebody to remove it
    path = Path(tempfile.mkdtemp(prefix=prefix))
    path.chmod(0o711)  # PostgreSQL is another user, where we are root
    broom = subprocess.Popen(
        ["/bin/sh", "-c", _SWEEP, "sh", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        assert broom.stdin is not None
        broom.stdin.close()
        broom.wait()
