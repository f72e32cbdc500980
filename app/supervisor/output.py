"""Where log lines go: no process waits for who reads them, who may have stopped to, or have gone.

A line for which there is no room is dropped, and the next that is written says how many were. A reader that stands
still would else stop all who write: each holds the lock of its log meanwhile.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from contextlib import suppress
from typing import TextIO


class Output:
    """Writes lines to a stream, as far as there is room for them.

    A file or a terminal is written to as it is. A pipe is opened once more where the system allows that: what makes a
    write return at once is a property of who has opened it, and others, who write into the same one, count on theirs.
    Where it is not, as with a socket, or with a pipe of another user, it is asked for room before each piece.
    """

    #: What a pipe takes as a whole, once it says that it takes something.
    _PIECE = select.PIPE_BUF

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._poll: select.poll | None = None
        self._number = -1
        with suppress(OSError, ValueError):  # a stream without a file, as a test has
            number = stream.fileno()
            mode = os.fstat(number).st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                self._number = number
                with suppress(OSError):
                    self._number = os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self._poll = select.poll()
                self._poll.register(self._number, select.POLLOUT)
        self._rest = b""
        self._dropped = 0

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
            said = f'{{"level": "WARN", "msg": "log lines dropped: nobody read them", "lines": {self._dropped}}}\n'
            self._dropped = 0
            if not self._written(said.encode()):
                self._dropped = 1
                return
        self._written(line.encode(errors="backslashreplace"))

    def _written(self, text: bytes) -> bool:
        """Write this; what there is no room for is the rest, which comes before all else."""
        while text and self._poll is not None and self._poll.poll(0):
            try:
                text = text[os.write(self._number, text[: self._PIECE]) :]
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.EINTR:  # nobody will ever read
                    text = b""
        self._rest = text
        return not text
