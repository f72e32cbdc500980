"""A canary is found in every form, in part, and by its name; and nothing else is found."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.leaks.canaries import LENGTH, Canaries
from tests.leaks.forms import PART, Forms

CANARIES = Canaries()
ONE, OTHER = CANARIES["one"], CANARIES["other"]
FORMS = Forms(CANARIES)


def _found(text: str) -> set[tuple[str, str]]:
    return {(find.canary, find.form) for find in FORMS.find("here", text)}


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("as it is", ONE),
        ("as it is", ONE.upper()),
        ("as it is", f"postgres://u:{ONE}@h/d"),
        ("as it is", json.dumps({ONE: 'ü"'})),
        ("as it is", quote(f"a b/{ONE}?ü", safe="")),
        ("hex", ONE.encode().hex()),
        ("hex", "0" + ONE.encode().hex().upper()),
        ("hex", f"\\x{ONE.encode().hex()}"),
        ("percent-encoded", "".join(f"%{ord(letter):02X}" for letter in ONE)),
        ("escaped", "".join(f"\\u{ord(letter):04x}" for letter in ONE)),
        ("escaped", "".join(f"\\x{ord(letter):02x}" for letter in ONE)),
    ],
)
def test_a_canary_is_found_in_each_form(form: str, text: str) -> None:
    assert ("one", form) in _found(text)
    assert "other" not in {name for name, _ in _found(text)}


@given(before=st.binary(max_size=7), after=st.binary(max_size=7), begin=st.integers(0, LENGTH - PART))
def test_base64_is_found_wherever_a_part_begins(before: bytes, after: bytes, begin: int) -> None:
    part = ONE[begin : begin + PART].encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        assert ("one", "base64") in _found(f" {encode(before + part + after).decode()} ")


@given(st.integers(0, LENGTH - PART))
def test_a_part_is_enough(begin: int) -> None:
    assert _found(ONE[begin : begin + PART]) == {("one", "as it is")}
    assert ("one", "hex") in _found(ONE[begin : begin + PART].encode().hex())


@given(st.text())
def test_nothing_else_is_found(text: str) -> None:
    assert not _found(text)
    assert not _found(ONE[: PART - 1] + "-" + ONE[PART:][: PART - 1])


def test_each_is_told_from_the_others_by_its_name_and_with_what_is_around_it() -> None:
    (find,) = FORMS.find("the log", f"password={OTHER} refused")
    assert (find.canary, find.place) == ("other", "the log")
    assert "password=" in str(find)
