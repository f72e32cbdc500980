"""What becomes of texts of others on their way into the page."""

from __future__ import annotations

import pytest

from app.page.markup import MOST_CHARACTERS, escape, join, tag


@pytest.mark.parametrize(
    ("text", "markup"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("\"'&", "&quot;&#x27;&amp;"),
        ("a\x00b\x1b[31m\nc", "a b [31m c"),
        ("prod\u202egnp.exe", "prod gnp.exe"),
        ("\ud800", " "),
        ("Zoë · 漢字", "Zoë · 漢字"),
    ],
)
def test_a_text_is_escaped_and_shows_as_it_is(text: str, markup: str) -> None:
    assert escape(text) == markup
    assert tag("p", text, title=text) == f'<p title="{markup}">{markup}</p>'
    escape(text).encode()


def test_markup_is_not_escaped_twice_and_a_joined_text_is() -> None:
    assert tag("p", tag("b", "<"), None, ["&", tag("i")]) == "<p><b>&lt;</b>&amp;<i></i></p>"
    assert join("<") == "&lt;"


def test_a_long_text_is_cut_before_it_is_escaped() -> None:
    assert escape("<" * 1000) == "&lt;" * (MOST_CHARACTERS - 1) + "…"
    assert len(tag("path", d="h1" * 1000)) > 2000
