"""What nothing here dials, in all of its spellings."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from app.core import egress
from app.core.egress import literal, never_dialled
from app.core.errors import AddressBlocked

NEVER = [
    "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "0.0.0.0", "0.1.2.3",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "fe80::1", "fe80::1%lo", "ff02::1", "fd00:ec2::254",
    "fd00:ec2::23", "fd20:ce::254", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "::169.254.169.254",
    "64:ff9b::169.254.169.254", "64:ff9b:1::169.254.169.254", "2002:a9fe:a9fe::1", "2002:6464:64c8::",
    "2001:0:a9fe:a9fe::", "2001:0:4136:e378:8000:63bf:5601:5601", "2606:4700::5efe:169.254.169.254",
]  # fmt: skip
OPEN = [
    "8.8.8.8", "127.0.0.1", "10.0.0.5", "172.16.0.1", "192.168.1.1", "100.64.0.1", "::1", "fd12::1", "fc00::1",
    "64:ff9b::10.0.0.5", "2002:a00:1::1", "::ffff:10.0.0.5", "2606:4700::1111",
]  # fmt: skip


@pytest.mark.parametrize("text", NEVER)
def test_some_addresses_are_dialled_by_nobody(text: str) -> None:
    address = literal(text)
    assert address is not None
    assert never_dialled(address)
    with pytest.raises(AddressBlocked):
        asyncio.run(egress.resolve(text, 80))


@pytest.mark.parametrize("text", OPEN)
def test_public_and_private_addresses_are_open(text: str) -> None:
    assert asyncio.run(egress.resolve(text, 80)) == [text]


@pytest.mark.parametrize("host", ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518"])
def test_an_address_spelt_as_a_number_is_judged_like_any_other(host: str) -> None:
    with pytest.raises(AddressBlocked):
        asyncio.run(egress.resolve(host, 80))


def test_an_exception_opens_one_address_and_no_other() -> None:
    metadata = [ip_address("169.254.169.254")]
    assert asyncio.run(egress.resolve("169.254.169.254", 80, besides=metadata)) == ["169.254.169.254"]
    with pytest.raises(AddressBlocked):
        asyncio.run(egress.resolve("169.254.170.2", 80, besides=metadata))
