"""Who types a command, as it is written down beside what the command does."""

from __future__ import annotations

import getpass
import os
import socket

from app.notify.format import one_line, truncate


def this_operator() -> str:
    """Return `user@host`. In a container the user may have no name, and is a number."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = str(os.getuid())
    return truncate(one_line(f"{user}@{socket.gethostname()}"), 200)
