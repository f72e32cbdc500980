"""A name that hangs costs those who wait for it, and nobody else."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.core.errors import SinkUnavailable
from app.core.lookup import NameUnknown, look_up
from app.notify.delivery.send import attempt
from app.notify.settings import NotificationSettings
from app.notify.transport import ThreadLoops
from tests.support.http_server import Receiver
from tests.support.outcome import LOOPBACK, NOTE, configured
from tests.support.waiting import eventually

#: A top-level domain that is never delegated: in place of a name server that is silent, which no test can have.
SILENT = "silent.invalid"


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Make look-ups of one name hang in the resolver, as they do without an answer; give the list of them."""
    over, asked, resolve = threading.Event(), list[str](), socket.getaddrinfo

    def hang(host: Any, *rest: Any, **words: Any) -> Any:
        if host == SILENT:
            asked.append(host)
            over.wait()
            raise socket.gaierror
        return resolve(host, *rest, **words)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    yield asked
    over.set()
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "look-up"])


def test_hanging_look_ups_take_one_thread_and_leave_others_alone(
    monkeypatch: pytest.MonkeyPatch, silent: list[str]
) -> None:
    """More attempts hang than an event loop's executor has threads; others get through, and every loop is closed."""
    with Receiver() as receiver:
        env = {
            **LOOPBACK,
            "SB_NOTIFICATION_WEBHOOK_URL": f"http://{SILENT}/",
            "SB_NOTIFICATION_TEAMS_URL": f"http://localhost:{receiver.port}/",
        }
        bad, good = configured(monkeypatch, env)

        def turn(number: int) -> None:
            loops = ThreadLoops(NotificationSettings.read())
            for _ in range(10):
                with pytest.raises(SinkUnavailable, match="timeout"):
                    loops(lambda transport: attempt(bad, NOTE, transport, 0.05))
            loops(lambda transport: attempt(good, NOTE, transport, 30))
            loops.close()

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(turn, range(8)))
        assert len(receiver.seen) == 8
    assert silent == [SILENT]


def test_whoever_waits_hears_the_same(silent: list[str]) -> None:
    async def both() -> list[list[str]]:
        return list(await asyncio.gather(look_up("localhost", 80), look_up("localhost", 80)))

    one, other = asyncio.run(both())
    assert one == other
    assert "127.0.0.1" in one


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a" * 64 + ".example.org", "x..example.org", "\udcff"])
def test_a_name_without_an_address_is_unknown(name: str) -> None:
    with pytest.raises(NameUnknown):
        asyncio.run(look_up(name, 80))
