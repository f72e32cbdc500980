"""What is said of a round: on a terminal, in its document, and in the table of the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.chaos import table
from tests.chaos.checks.violation import Violation
from tests.chaos.history import Change, History, Received
from tests.chaos.playing import Played
from tests.chaos.reporting.figures import figures
from tests.chaos.reporting.report import WIDTH, command, lines, write

BEGAN = datetime(2026, 11, 26, 12, tzinfo=UTC)


def run(number: int, covered: int, *outcomes: str) -> Iterator[Change]:
    """Yield the changes of a run's row, by which it had one outcome after the other."""
    for outcome in outcomes:
        row = {"id": number, "name": "wraps-expired", "covered": covered, "outcome": outcome}
        yield Change(number, number, BEGAN, BEGAN, True, "worker0", "sweep_run", "update", {}, row)


CHANGES = [
    *run(1, 2, "running", "success"),
    *run(2, 0, "running", "success", "interrupted"),  # a clock was put right, and it is forgotten
    *run(3, 1, "running", "interrupted"),
    *run(4, 5, "running", "failure"),
]
TAKEN = [Received(1.0, "webhook", "one", {}), Received(2.0, "webhook", "one", {}), Received(3.0, "webhook", "two", {})]
EFFECTS = {"kill": 7, "kill: worker": 5, "kill: scheduler": 2, "sink": 1_000}
PLAYED = Played(
    "kill",
    123,
    600.0,
    History(changes=CHANGES, received=TAKEN),
    EFFECTS,
    (),
    (),
    "processes killed",
    {"PostgreSQL": "18.1", "cores": "2"},
)
FOUND = (
    Violation("slots", "wraps-expired: slot 12:00:00 (run 7) was run twice, by run 6 before"),
    Violation("slots", "1 slots without a run before wraps-expired: slot 12:00:00 (run 7), 11:59:59"),
    Violation("tokens", "wraps-expired: token 3 was given after 4"),
    Violation("due", "secret_wraps 1 was deleted 2 s before its time"),
    Violation("notifications", "delivery 1 of 2 to webhook is delivered, and was never received"),
    Violation("notifications", "webhook received one again after 1.000 s, and there was no fault"),
    Violation("leftovers", "key: something"),
)


def test_slots_are_those_that_stand_and_effects_are_counted_once() -> None:
    found = figures(PLAYED)

    assert (found.slots, found.runs, found.covered) == (6, 2, 3)
    assert found.effects == 1_007
    assert (found.received, found.repeats) == (3, 1)


def test_each_finding_counts_in_one_column() -> None:
    found = figures(replace(PLAYED, violations=FOUND))

    assert (found.duplicates, found.uncovered, found.token_regressions, found.early_deletes) == (1, 1, 1, 1)
    assert (found.lost, found.doubled, found.other) == (1, 1, 1)


def test_lines_fit_a_terminal_and_say_how_to_play_it_once_more() -> None:
    wordy = (Violation("leftovers", "a word " * 60), *FOUND)
    said = lines(replace(PLAYED, violations=wordy, too_few=["sink: 1 with an effect, at least 20 were to be"]))

    assert max(map(len, said)) <= WIDTH
    text = " ".join(line.strip() for line in said)
    assert "FOUND by leftovers: 2" in text
    assert "TOO FEW sink: 1 with an effect" in text
    assert said[-1].strip() == "FAILED; once more: make chaos SEED=123 ROUND=kill SECONDS=600"
    assert lines(PLAYED)[-1].strip() == "passed"


def test_a_page_gets_the_rows_of_the_rounds_between_its_marks_and_keeps_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    write(tmp_path / "out", replace(PLAYED, violations=FOUND))
    write(tmp_path / "out", replace(PLAYED, name="none", text="the control"))

    assert table.main([str(tmp_path / "out"), str(page)]) == 0
    assert table.main([str(tmp_path / "out"), str(page)]) == 0, "once more changes nothing"

    written = page.read_text()
    assert written.startswith(f"before\n{table.BEGIN}\n| round |")
    assert written.endswith(f"Played on PostgreSQL 18.1, cores 2.\n{table.END}\nafter\n")
    rows = [line for line in written.splitlines() if line.startswith("| ")]
    assert [row.split(":")[0] for row in rows[1:]] == ["| none", "| kill"], "in the order of the rounds"
    assert rows[1].endswith("| 1,007 | 6 | 2 | 0 | 0 | 0 | 0 | 0 | 0 | 0.0 s | passed |")
    assert rows[2].endswith("| 1,007 | 6 | 2 | 1 | 1 | 1 | 1 | 1 | 1 | 0.0 s | **failed** |")
    assert f"`{command(PLAYED)}`" in rows[2]
    assert {row.count("|") for row in rows} == {rows[0].count("|")}


def test_a_document_has_what_plays_it_once_more_and_what_was_found(tmp_path: Path) -> None:
    document = json.loads(write(tmp_path, replace(PLAYED, violations=FOUND)).read_text())

    assert document["command"] == command(PLAYED)
    assert document["violations"][0] == {"check": "slots", "text": FOUND[0].text}
    assert document["effects"] == EFFECTS
    assert document["versions"] == {"PostgreSQL": "18.1", "cores": "2"}


@pytest.mark.parametrize(
    ("text", "said"),
    [("no marks", "the page needs the two lines"), (f"{table.END}\n{table.BEGIN}", "the page needs the two lines")],
)
def test_a_page_without_marks_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    write(tmp_path, PLAYED)

    assert table.main([str(tmp_path), str(page)]) == 1
    assert said in capsys.readouterr().err
    assert page.read_text() == text


def test_a_table_of_nothing_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main([]) == 2
    assert table.main([str(tmp_path)]) == 1
    assert "make chaos OUT=DIR" in capsys.readouterr().err
