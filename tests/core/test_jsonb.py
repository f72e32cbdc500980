"""What PostgreSQL can hold, asked of PostgreSQL."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from app.core import jsonb

UNFIT: list[str] = [
    '"\\u0000"',
    '"\\ud800"',
    '"\\udc00x"',
    "NaN",
    "1e400",
    "-Infinity",
    '{"\\u0000": 1}',
    '[[{"a": ["\\ud800"]}]]',
]
FIT: list[str] = ['"\\ud83d\\ude00"', "1e308", "0.1", "9" * 4000, "null", "[]", '{"": {"a": [true]}}']


@pytest.mark.parametrize("text", UNFIT)
def test_what_cannot_be_stored_is_found(sql: Connection[Any], text: str) -> None:
    value = json.loads(text)
    assert len(jsonb.problems({"a": value})) == 1
    with pytest.raises(psycopg.DataError):
        sql.execute("SELECT %s::jsonb", [json.dumps({"a": value})])


@pytest.mark.parametrize("text", FIT)
def test_what_can_be_stored_is_no_problem(sql: Connection[Any], text: str) -> None:
    value = json.loads(text)
    assert jsonb.problems({"a": value}) == []
    assert sql.execute("SELECT %s::jsonb IS NOT NULL", [json.dumps({"a": value})]).fetchone() == (True,)


def test_levels_have_an_end() -> None:
    assert jsonb.problems(json.loads("[" * 60 + "]" * 60)) == []
    assert jsonb.problems(json.loads("[" * 500 + "]" * 500)) == ["more than 64 levels"]


def test_a_text_is_made_fit(sql: Connection[Any]) -> None:
    text = jsonb.fit("a\x00b\ud800c\U0001f600")
    assert text == "ab?c\U0001f600"
    assert sql.execute("SELECT %s", [text]).fetchone() == (text,)
