"""What a process listens on, and its children: TCP, UDP and Unix sockets, as the kernel has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from socket import SOCK_STREAM

import psutil

#: Of a Unix socket that accepts connections, in /proc/net/unix.
_ACCEPTS = 0x10000


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that have come of it."""
    main = psutil.Process(pid)
    return [main, *main.children(recursive=True)]


def listening(pid: int) -> set[str]:
    """Return where anybody could reach a process or one of its children."""
    return {place for process in family(pid) for place in (*_inet(process), *_unix(process))}


def _inet(process: psutil.Process) -> Iterator[str]:
    for one in process.net_connections("inet"):
        if one.type == SOCK_STREAM:
            if one.status == psutil.CONN_LISTEN:
                yield f"tcp {one.laddr.ip}:{one.laddr.port}"
        elif one.laddr and not one.raddr:  # one that is connected hears its peer alone, such as a resolver
            yield f"udp {one.laddr.ip}:{one.laddr.port}"


def _unix(process: psutil.Process) -> Iterator[str]:
    accept = {}
    for line in Path(f"/proc/{process.pid}/net/unix").read_text(encoding="utf-8").splitlines()[1:]:
        words = line.split()
        if int(words[3], 16) & _ACCEPTS:
            accept[f"socket:[{words[6]}]"] = words[7] if len(words) > 7 else ""
    for handle in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            target = str(handle.readlink())
        except FileNotFoundError:  # it was closed meanwhile
            continue
        if target in accept:
            yield f"unix {accept[target]}"
