"""Where log lines go: no process waits for who reads them, who may have stopped to, or have gone.

A line for which there is no room is dropped, and the next that is written says how many were. A reader that stands
still would else stop all who write: each holds the lock of its log meanwhile.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from contextlib import suppress
from typing import TextIO

_SAID = "log lines dropped: nobody read them (lines: {})\n"
_RECORD = '{{"level": "WARN", "msg": "log lines dropped: nobody read them", "lines": {}}}\n'


class Output:
    """Writes lines to a stream, as far as there is room for them.

    A file is written to as it is. A pipe or a terminal is opened once more where the system allows that: what makes a
    write return at once is a property of who has opened it, and others, who write into the same one, or read from the
    same terminal, count on theirs. Where it is not, as with a socket, or with a pipe or a terminal of another user, it
    is asked for room before each piece. A terminal that is stopped between the two then keeps its writer.
    """

    #: What a pipe takes as a whole, once it says that it takes something; and a terminal, to which a line's end is two.
    _PIECE, _OF_A_TERMINAL = select.PIPE_BUF, 64
    #: Seconds in which a terminal, which has room for some lines only, is waited for, once for each stop.
    _PATIENCE = 0.1

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._poll: select.poll | None = None
        self._number, self._piece = -1, self._PIECE
        self._human = False
        with suppress(OSError, ValueError):  # a stream without a file, as a test has
            number = stream.fileno()
            mode = os.fstat(number).st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode):
                self._human = os.isatty(number)
                self._number = _opened(number)
                if self._number == number and self._human:
                    self._piece = self._OF_A_TERMINAL
                self._poll = select.poll()
                self._poll.register(self._number, select.POLLOUT)
        self._rest = b""
        self._dropped = 0
        self._stands = False

    def write(self, line: str) -> None:
        """Write a line, or count it as dropped. Raises nothing: there is nowhere to tell it."""
        if self._poll is None:
            with suppress(OSError, ValueError):
                self._stream.write(line)
                self._stream.flush()
            return
        if not self._written(self._rest):
            self._dropped += 1
            return
        if self._dropped:
            said = _SAID if self._human else _RECORD
            said, self._dropped = said.format(self._dropped), 0
            if not self._written(said.encode()):
                self._dropped = 1
                return
        self._written(line.encode(errors="backslashreplace"))

    def _written(self, text: bytes) -> bool:
        """Write this; what there is no room for is the rest, which comes before all else."""
        end = time.monotonic() + (self._PATIENCE if self._human and not self._stands else 0)
        while text and self._poll is not None and self._poll.poll(max(0, end - time.monotonic()) * 1000):
            try:
                text = text[os.write(self._number, text[: self._piece]) :]
            except BlockingIOError:  # of a terminal also where another process is writing to it at this moment
                if time.monotonic() >= end:
                    break
                time.sleep(0.001)
            except OSError as error:
                if error.errno != errno.EINTR:  # nobody will ever read
                    text = b""
        self._rest, self._stands = text, bool(text)
        return not text


def _opened(number: int) -> int:
    """Return a descriptor of our own for what this one leads to, or this one, where that is refused."""
    # Without the last of these it could become the terminal that a session's signals come from.
    ours = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    with suppress(OSError):
        return os.open(f"/proc/self/fd/{number}", ours)
    with suppress(OSError):  # without /proc
        return os.open(os.ttyname(number), ours)
    return number
