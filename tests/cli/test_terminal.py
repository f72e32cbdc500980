"""Nothing that was read of a row steers a terminal."""

from __future__ import annotations

import io

import pytest
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.cli.terminal import Terminal, plain

STEERS = "\x1b[2J\x1b]0;title\x07\u202e\x9b31m"


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_are_left_out_wherever_a_text_is_shown(terminal: bool) -> None:
    output = io.StringIO()
    table = Table(f"a{STEERS}")
    table.add_row(Text(f"b{STEERS}", "bold"), f"c{STEERS}")
    shown = Terminal(file=output, width=80, force_terminal=terminal)
    shown.print(f"d{STEERS}", table, sep="\n")
    written = output.getvalue()
    assert all(part not in written for part in ("\x1b[2J", "\x1b]0", "\x07", "\u202e", "\x9b"))
    assert ("\x1b[1m" in written) == terminal  # what is bold, where it can be
    assert all(letter in written for letter in "abcd")


def test_a_screen_that_is_kept_up_to_date_still_is() -> None:
    output = io.StringIO()
    with Live(console=Terminal(file=output, width=80, force_terminal=True), screen=True, auto_refresh=False) as live:
        live.update("now", refresh=True)
    assert "\x1b[?1049h" in output.getvalue()


def test_lines_stay_lines() -> None:
    assert plain("a\nb\tc\r") == "a\nbc"
