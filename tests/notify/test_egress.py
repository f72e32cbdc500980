"""Addresses that are never dialled, and those that are only where the operator allows it."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network

import pytest

from app.core.errors import AddressBlocked
from app.core.lookup import NameUnknown
from app.notify.egress import CLEARTEXT, CLOSED, NEVER, OPEN, EgressPolicy

PUBLIC = [
    "93.184.216.34",
    "8.8.8.8",
    "2606:2800:220:1:248:1893:25c8:1946",
    "100.128.0.1",
    "172.32.0.1",
    "::ffff:8.8.8.8",
]
PRIVATE = [
    "127.0.0.1", "127.255.255.254", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
    "198.18.0.1", "192.0.2.1", "203.0.113.9", "::1", "fc00::1", "fd12:3456::1", "fec0::1", "64:ff9b::a00:1",
    "64:ff9b:1::1", "2002:a00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "::10.0.0.1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "2001:db8::1",
]  # fmt: skip
NEVER_DIALLED = [
    "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.0.1", "224.0.0.1", "239.255.255.255", "240.0.0.1",
    "255.255.255.255", "::", "fe80::1", "fe80::1%eth0", "ff02::1", "fd00:ec2::254", "100.100.100.200",
    "168.63.129.16", "::ffff:169.254.169.254", "::ffff:0.0.0.0",
]  # fmt: skip
ALL = tuple(map(ip_network, ("0.0.0.0/0", "::/0")))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_dialled(address: str) -> None:
    assert EgressPolicy(()).allows(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_nothing_public_is_dialled_without_tls(address: str) -> None:
    assert not EgressPolicy(()).allows(address, cleartext=True)


@pytest.mark.parametrize("address", PRIVATE)
def test_closed_addresses_are_dialled_where_they_are_allowed(address: str) -> None:
    assert not EgressPolicy(()).allows(address)
    assert not EgressPolicy([ip_network("192.0.0.0/30")]).allows(address)
    assert EgressPolicy(ALL).allows(address)
    assert EgressPolicy(ALL).allows(address, cleartext=True)


@pytest.mark.parametrize("address", NEVER_DIALLED)
def test_some_are_dialled_by_nobody(address: str) -> None:
    assert not EgressPolicy(()).allows(address)
    assert not EgressPolicy(ALL).allows(address)


def test_a_name_is_judged_by_its_addresses() -> None:
    loopback = EgressPolicy([ip_network("127.0.0.0/8")])
    assert asyncio.run(loopback.resolve("127.0.0.1", 80)) == ["127.0.0.1"]
    with pytest.raises(AddressBlocked):
        asyncio.run(EgressPolicy(()).resolve("localhost", 80))
    with pytest.raises(NameUnknown):
        asyncio.run(EgressPolicy(()).resolve("no-such-host.invalid", 80))


@pytest.mark.parametrize(
    ("address", "cleartext", "refusal"),
    [
        ("169.254.169.254", False, NEVER),
        ("10.1.2.3", False, CLOSED),
        ("10.1.2.3", True, CLOSED),
        ("8.8.8.8", True, CLEARTEXT),
        ("8.8.8.8", False, ""),
    ],
)
def test_a_refusal_says_why(address: str, cleartext: bool, refusal: str) -> None:
    assert EgressPolicy(()).refusal(ip_address(address), cleartext=cleartext) == refusal


def test_what_is_configured_as_for_the_go_worker_may_be_anywhere_but_there() -> None:
    assert all(OPEN.allows(address, cleartext=True) for address in (*PUBLIC, *PRIVATE))
    assert not any(OPEN.allows(address) for address in NEVER_DIALLED)
