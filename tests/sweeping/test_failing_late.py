"""A run fails while its successor has it closed, and has not committed that yet: what was done is told once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import dict_row

from app.core.errors import Failure
from app.sweeping.ledger import failures, runs
from app.sweeping.ledger.runs import Claimed, Interrupted, Progress, Rest
from app.sweeping.streak import Counted, Telling
from tests.support.waiting import HUNG, eventually
from tests.sweeping.runs.looking import await_next_second, claimed

WAITS = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
Failed = tuple[Counted | None, Interrupted | None]


@pytest.fixture
def fails_meanwhile(database: str, sql: Connection[Any]) -> Callable[[Callable[[Connection[Any]], object]], Failed]:
    """Return what the first run's failure comes to, written while its successor has done this, and not committed it."""

    def play(successor: Callable[[Connection[Any]], object]) -> Failed:
        first = claimed(sql)
        found: list[Failed] = []

        def fail(connection: Connection[Any]) -> None:
            with connection.transaction():
                found.append(failures.fail(connection.cursor(row_factory=dict_row), first, Failure("Boom"), Telling()))

        await_next_second(sql)
        with psycopg.connect(database) as later, psycopg.connect(database) as earlier:
            later.execute("SELECT 1")  # begins its transaction: what follows is not committed by itself
            successor(later)
            failing = threading.Thread(target=fail, args=(earlier,))
            failing.start()
            eventually(lambda: sql.execute(WAITS, [earlier.info.backend_pid]).fetchone())
            later.commit()
            failing.join(HUNG)
        return found[0]

    return play


def finished(connection: Connection[Any]) -> None:
    """Claim and finish in one transaction."""
    run: Claimed = claimed(connection)
    runs.finish(connection.cursor(row_factory=dict_row), run, Progress(1, 1, {}), Rest(None))


def test_what_its_successor_reports_is_not_reported_once_more(
    fails_meanwhile: Callable[[Callable[[Connection[Any]], object]], Failed],
) -> None:
    counted, to_report = fails_meanwhile(claimed)
    assert to_report is None
    assert counted is not None
    assert counted.streak.failures == 1


def test_it_is_no_failure_once_its_successor_has_succeeded(
    fails_meanwhile: Callable[[Callable[[Connection[Any]], object]], Failed],
) -> None:
    assert fails_meanwhile(finished) == (None, None)
