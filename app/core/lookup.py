"""Looks names up so that a resolver which hangs costs those who wait for that name, and nobody else.

`getaddrinfo` cannot be cancelled. In the event loop's own executor, look-ups that hang would take its threads from the
names that answer, and the loop could not be closed before the last of them. Here each name that is being looked up has
one thread, which everybody who asks for that name waits for; so there are as many as there are names.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import NamedTuple


class _Waiter(NamedTuple):
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[list[str]]


class NameUnknown(Exception):
    """The resolver has no address for the name, or could not be asked."""


_lock = threading.Lock()
_waiters: dict[tuple[str, int], list[_Waiter]] = {}


async def look_up(host: str, port: int) -> list[str]:
    """Return a host's addresses in the resolver's order. Raises NameUnknown. The deadline is the caller's."""
    key, loop = (host, port), asyncio.get_running_loop()
    waiter = _Waiter(loop, loop.create_future())
    with _lock:
        first = key not in _waiters
        _waiters.setdefault(key, []).append(waiter)
    try:
        if first:
            _start(key)
        return await waiter.answer
    finally:
        with _lock, suppress(KeyError, ValueError):
            _waiters[key].remove(waiter)


def _start(key: tuple[str, int]) -> None:
    thread = threading.Thread(target=_resolve, args=key, name="look-up", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread to be had
        with _lock:
            _waiters.pop(key)
        raise NameUnknown from None


def _resolve(host: str, port: int) -> None:
    addresses: list[str] = []
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(info[4][0]) for info in infos))
    except Exception:  # noqa: BLE001, S110 - whatever it is, there is no address, and those who wait are to hear of it
        pass
    with _lock:
        waiters = _waiters.pop((host, port), [])
    for waiter in waiters:
        with suppress(RuntimeError):  # its loop is closed
            waiter.loop.call_soon_threadsafe(_answer, waiter.answer, addresses)


def _answer(waiting: asyncio.Future[list[str]], addresses: list[str]) -> None:
    if waiting.done():
        return
    if addresses:
        waiting.set_result(addresses)
    else:
        waiting.set_exception(NameUnknown())
