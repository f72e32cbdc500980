"""The ledger's checker: quiet about what runs have written; each fault is caught by the check that is meant for it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection

from actors.wraps_expired import WrapsExpired, wraps_expired
from app.core.values import format_duration
from app.overview.history import verifying
from app.overview.history.findings import MOST_KEPT, Check, Findings
from app.overview.history.transaction import looking_back
from app.overview.history.verifying import Known, verify
from tests.overview.ledger import Ledger
from tests.support.replica import Replica
from tests.support.rows import column
from tests.support.slots import steady
from tests.support.waiting import eventually
from tests.sweeping.steering.hand import hand

SECOND, EVERY = timedelta(seconds=1), steady()
NAME = "wraps-expired"


def known(*, held: bool | None = False, enabled: bool = True, every: timedelta = EVERY) -> Known:
    return Known({NAME: every}, lambda _name: enabled, 6 * SECOND, lambda _name: held)


def found(sql: Connection[Any], by: Known | None = None, window: timedelta = 1440 * EVERY) -> Findings:
    with looking_back(sql) as cursor:
        (findings,) = (each for each in verify(cursor, by or known(), window) if each.name == NAME)
    return findings


def sums(findings: Findings) -> tuple[int, int, int, int]:
    return findings.slots, findings.runs, findings.covered, findings.waiting


def in_the_next_slot(sql: Connection[Any]) -> None:
    """Wait until the newest claimed slot of a second is over."""
    query = "SELECT NOT EXISTS (SELECT FROM secrets_bridge_worker.sweep_state WHERE last_slot > now() - interval '1 s')"
    eventually(lambda: column(sql, query) == [True])


@pytest.fixture
def ledger(sql: Connection[Any]) -> Ledger:
    return Ledger(sql, NAME, EVERY)


def test_what_real_runs_have_written_is_consistent(replica: Replica, sql: Connection[Any]) -> None:
    settings = WrapsExpired(interval=SECOND)
    for _ in range(2):
        replica.run(wraps_expired, settings)
        in_the_next_slot(sql)
    sql.execute("ALTER TABLE secret_wraps RENAME COLUMN expires_at TO away")
    replica.fails(wraps_expired, settings)
    sql.execute("ALTER TABLE secret_wraps RENAME COLUMN away TO expires_at")
    in_the_next_slot(sql)
    replica.run(wraps_expired, settings)

    findings = found(sql, known(every=SECOND))
    assert (findings.runs, findings.failed, findings.kept) == (3, 1, [])


def test_each_slot_with_a_run_is_consistent(ledger: Ledger, sql: Connection[Any]) -> None:
    ledger.runs(9)
    findings = found(sql)
    assert (sums(findings), findings.kept, findings.notes) == ((10, 10, 0, 0), [], [])


def test_slots_that_a_later_run_covers_are_served(ledger: Ledger, sql: Connection[Any]) -> None:
    ledger.runs(9, 8)
    ledger.run(3, covered=4)
    ledger.runs(2)
    assert (sums(found(sql)), found(sql).kept) == ((10, 6, 4, 0), [])


def test_a_slot_run_twice_is_found(ledger: Ledger, sql: Connection[Any]) -> None:
    sql.execute("DROP INDEX secrets_bridge_worker.sweep_run_once")
    ledger.runs(9, 5)
    twice = ledger.run(5)
    ledger.runs(4)
    findings = found(sql)
    assert dict(findings.number) == {Check.ONCE: 1}
    assert (findings.kept[0].slot, findings.kept[0].text.split()[:2]) == (ledger.slot(5), ["run", str(twice)])


def test_a_run_after_that_of_a_newer_slot_is_found(ledger: Ledger, sql: Connection[Any]) -> None:
    ledger.runs(9, 5)
    ledger.run(10, started_at=ledger.slot(5) + SECOND)
    ledger.runs(4)
    assert dict(found(sql).number) == {Check.ONCE: 1}


def test_a_slot_that_nobody_ran_or_covered_is_found(ledger: Ledger, sql: Connection[Any]) -> None:
    ids = ledger.runs(9)
    sql.execute("DELETE FROM secrets_bridge_worker.sweep_run WHERE id = %s", [ids[4]])
    findings = found(sql)
    assert dict(findings.number) == {Check.EVERY: 1}
    assert findings.kept[0].slot == ledger.slot(5)
    assert findings.slots == 10


def test_a_run_that_covers_more_than_there_is_is_found(ledger: Ledger, sql: Connection[Any]) -> None:
    ids = ledger.runs(9)
    sql.execute("UPDATE secrets_bridge_worker.sweep_run SET covered = 6 WHERE id = %s", [ids[4]])
    findings = found(sql)
    assert dict(findings.number) == {Check.COVERED: 1}
    assert findings.kept[0].slot == ledger.slot(5)


def test_a_fencing_token_that_does_not_grow_is_found(ledger: Ledger, sql: Connection[Any]) -> None:
    ids = ledger.runs(9)
    sql.execute("UPDATE secrets_bridge_worker.sweep_run SET token = 4 WHERE id = %s", [ids[4]])
    assert dict(found(sql).number) == {Check.TOKENS: 1}
    sql.execute("UPDATE secrets_bridge_worker.sweep_run SET token = 3 WHERE id = %s", [ids[4]])
    assert dict(found(sql).number) == {Check.TOKENS: 1}


def test_a_run_that_ends_after_its_successor_has_begun_is_found(ledger: Ledger, sql: Connection[Any]) -> None:
    ids = ledger.runs(9)
    change = "UPDATE secrets_bridge_worker.sweep_run SET finished_at = finished_at + %s WHERE id = %s"
    sql.execute(change, [EVERY + SECOND, ids[4]])
    assert found(sql).kept == []  # so long may a claim have waited for the fence
    sql.execute(change, [3 * SECOND, ids[4]])
    findings = found(sql)
    assert dict(findings.number) == {Check.OVERLAP: 1}
    assert findings.kept[0].slot == ledger.slot(4)


@pytest.mark.parametrize("held", [False, None, True])
def test_an_open_run_that_another_has_followed_is_found(
    ledger: Ledger, sql: Connection[Any], held: bool | None
) -> None:
    ledger.runs(9, 6)
    ledger.run(5, "running")
    ledger.runs(4)
    assert dict(found(sql, known(held=held)).number) == {Check.RUNNING: 1}


def test_the_newest_open_run_is_found_once_somebody_should_have_taken_over(
    ledger: Ledger, sql: Connection[Any]
) -> None:
    ledger.runs(9, 6)
    ledger.run(5, "running")
    assert dict(found(sql).number) == {Check.RUNNING: 1}
    for held in (True, None):  # somebody's, or not known without Redis
        assert found(sql, known(held=held)).kept == []
    sql.execute(
        "UPDATE secrets_bridge_worker.sweep_run SET started_at = now() - interval '1 s' WHERE outcome = 'running'"
    )
    assert found(sql).kept == []


def test_an_open_run_of_before_the_window_is_found(ledger: Ledger, sql: Connection[Any]) -> None:
    ledger.run(500, "running")
    ledger.run(9, covered=490)
    ledger.runs(8)
    assert dict(found(sql, window=60 * EVERY).number) == {Check.RUNNING: 1}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("changed = -1", "below zero"),
        ("covered = -1", "below zero"),
        ("changed = 3, batches = 0", "no transaction"),
        ("batches = 0", "without a transaction"),
        ("counts = '{\"deleted\": 1.5}'", "no whole numbers"),
        ("counts = '[]'", "no whole numbers"),
        ("finished_at = NULL", "no end"),
        ("finished_at = started_at - interval '1 s'", "before it began"),
        ("error_class = 'Timeout'", "with an error"),
        ("outcome = 'failure'", "without an error"),
        ("token = NULL", "no fencing token"),
        (f"started_at = slot - interval '{(EVERY / 2 + SECOND).total_seconds()} s'", "half an interval before"),
    ],
)
def test_numbers_and_times_that_do_not_fit_are_found(
    ledger: Ledger, sql: Connection[Any], change: str, text: str
) -> None:
    ids = ledger.runs(9)
    sql.execute(f"UPDATE secrets_bridge_worker.sweep_run SET {change} WHERE id = {ids[4]}".encode())
    findings = found(sql)
    assert findings.number[Check.COUNTS] >= 1
    assert any(text in fault.text for fault in findings.kept)


def test_many_faults_are_counted_and_some_are_shown(ledger: Ledger, sql: Connection[Any]) -> None:
    ledger.runs(50)
    sql.execute("UPDATE secrets_bridge_worker.sweep_run SET changed = -1")
    findings = found(sql)
    assert (findings.faults, len(findings.kept)) == (51, MOST_KEPT)


def test_a_slot_whose_run_was_killed_is_taken_over_by_the_next(ledger: Ledger, sql: Connection[Any]) -> None:
    ledger.run(5)
    ledger.run(4, "interrupted")
    ledger.runs(3)
    assert (sums(found(sql)), found(sql).taken_over, found(sql).kept) == ((6, 5, 0, 0), 1, [])


def test_a_slot_run_again_after_a_failure_or_a_kill_counts_once(ledger: Ledger, sql: Connection[Any]) -> None:
    ledger.run(5)
    for outcome in ("failure", "interrupted", "success"):
        ledger.run(4, outcome)
    ledger.run(3, "interrupted")
    ledger.run(3, "failure")  # gives back what the killed one had claimed
    ledger.run(2, covered=1)
    ledger.run(1, "failure")
    ledger.run(1, "failure", token=None)
    ledger.run(0, covered=1)
    findings = found(sql)
    assert (sums(findings), findings.failed, findings.kept) == ((6, 4, 2, 0), 4, [])


def test_a_slot_given_back_that_nobody_covers_is_found(ledger: Ledger, sql: Connection[Any]) -> None:
    ledger.run(5)
    ledger.run(4, "failure")
    ledger.runs(3)
    findings = found(sql)
    assert dict(findings.number) == {Check.EVERY: 1}
    assert findings.kept[0].slot == ledger.slot(4)


def test_the_first_run_owes_nothing_and_the_current_slot_is_still_open(ledger: Ledger, sql: Connection[Any]) -> None:
    ledger.run(1)
    assert (sums(found(sql)), found(sql).kept) == ((1, 1, 0, 0), [])


def test_slots_that_wait_for_a_run_are_no_fault_but_are_told(ledger: Ledger, sql: Connection[Any]) -> None:
    ledger.runs(9, 6)
    findings = found(sql)
    assert (sums(findings), findings.kept) == ((9, 4, 0, 5), [])
    assert "sb-worker why wraps-expired" in findings.notes[0]
    assert found(sql, known(enabled=False)).waiting == 0


def test_a_window_begins_with_what_was_claimed_before_it(ledger: Ledger, sql: Connection[Any]) -> None:
    ledger.run(100)
    for _ in range(3):
        ledger.run(90, "failure")
    ledger.run(30, covered=60)  # one too few, although that is seen only with the run before the window
    ledger.run(20, covered=9)
    ledger.runs(19)
    findings = found(sql, window=60 * EVERY)
    assert dict(findings.number) == {Check.EVERY: 1}
    assert findings.since == ledger.slot(30)


def test_what_was_deleted_by_its_age_is_not_missed(ledger: Ledger, sql: Connection[Any]) -> None:
    ids = ledger.runs(50)
    sql.execute("DELETE FROM secrets_bridge_worker.sweep_run WHERE id < %s", [ids[20]])
    assert (sums(found(sql)), found(sql).kept) == ((31, 31, 0, 0), [])


def test_slots_in_a_pause_are_covered_as_any_other(ledger: Ledger, sql: Connection[Any]) -> None:
    ledger.pause(8.5, 4.5)
    ledger.run(9)
    ledger.run(4, covered=4)
    ledger.runs(3)
    assert (sums(found(sql)), found(sql).kept) == ((10, 6, 4, 0), [])


@pytest.mark.parametrize("stop", ["pause", "brake"])
def test_while_no_run_may_begin_nobody_takes_over(ledger: Ledger, sql: Connection[Any], stop: str) -> None:
    ledger.run(9)
    ledger.run(8, "running")
    if stop == "pause":
        ledger.pause(8, -5)
    else:  # which has a token of its own, and no row
        sql.execute("UPDATE secrets_bridge_worker.sweep_state SET braked_for = 'usual', token = token + 1")
    findings = found(sql)
    assert (findings.kept, findings.waiting) == ([], 7)
    assert any("until a run may follow it" in note for note in findings.notes)


def test_a_run_by_hand_serves_its_own_slot_and_covers_those_before(ledger: Ledger, sql: Connection[Any]) -> None:
    ledger.run(8)
    ledger.run(4.5, requested_by="anna", covered=2)  # slots 7 and 6; 5 is its own
    ledger.run(4)
    ledger.run(3.5, requested_by="anna")  # beside the tick's own of slot 4
    ledger.runs(3)
    findings = found(sql)
    assert (findings.by_hand, findings.kept) == (2, [])
    sql.execute("DELETE FROM secrets_bridge_worker.sweep_run WHERE slot = %s", [ledger.slot(4.5)])
    assert dict(found(sql).number) == {Check.EVERY: 1}


def test_real_runs_by_hand_are_consistent(replica: Replica, sql: Connection[Any]) -> None:
    settings = WrapsExpired(interval=SECOND)
    replica.run(wraps_expired, settings)
    for _ in range(2):
        in_the_next_slot(sql)
        hand(replica, wraps_expired, settings)
        hand(replica, wraps_expired, settings)
    in_the_next_slot(sql)
    replica.run(wraps_expired, settings)
    findings = found(sql, known(every=SECOND))
    assert (findings.by_hand, findings.kept) == (4, [])


def test_a_changed_cadence_that_processes_tell_is_judged_by_it(ledger: Ledger, sql: Connection[Any]) -> None:
    ledger.process(100, 40, cadences={NAME: (5 * EVERY).total_seconds()}, host="old")
    ledger.process(40, None, host="new")
    fives = [ago for ago in range(95, 40, -1) if ledger.begins(ago, 5)]
    for ago in fives:
        ledger.run(ago, worker="old:1")
    gap = fives[-1] - 39 - 1
    ledger.run(39, worker="new:1", covered=gap)
    for ago in range(38, -1, -1):
        ledger.run(ago, worker="new:1")
    findings = found(sql)
    assert (findings.kept, findings.runs) == ([], len(fives) + 40)
    sql.execute("DELETE FROM secrets_bridge_worker.sweep_run WHERE slot = %s", [ledger.slot(fives[4])])
    assert dict(found(sql).number) == {Check.EVERY: 1}


def test_where_processes_disagree_a_run_is_judged_by_the_cadence_of_its_own(
    ledger: Ledger, sql: Connection[Any]
) -> None:
    ledger.process(100, None, host="fast")
    ledger.process(100, None, host="slow", cadences={NAME: (5 * EVERY).total_seconds()})
    for ago in range(30, -1, -1):
        ledger.run(ago, worker="fast:1")
    fives = [ledger.slot(ago) for ago in range(25, 5, -1) if ledger.begins(ago, 5)]
    query = "DELETE FROM secrets_bridge_worker.sweep_run WHERE slot > %s AND slot < %s"
    sql.execute(query, [fives[0], fives[1]])
    findings = found(sql)
    assert dict(findings.number) == {Check.EVERY: 1}
    assert findings.kept[0].text.startswith("4 without a run")


def test_a_slot_of_another_cadence_is_judged_by_that_of_the_process_that_claimed_it(
    ledger: Ledger, sql: Connection[Any]
) -> None:
    """It was sent by a scheduler that had the new interval already, to a worker that had the old one still."""
    ledger.process(100, None, host="fast")
    ledger.process(100, None, host="slow", cadences={NAME: (5 * EVERY).total_seconds()})
    for ago in range(30, 20, -1):
        ledger.run(ago, worker="fast:1")
    sent = next(ago for ago in range(9, 0, -1) if ledger.begins(ago, 5, 3))
    fives = [ago for ago in range(20, sent, -1) if ledger.begins(ago, 5)]
    ledger.run(sent, worker="slow:1", covered=len(fives) - 1)  # the last one is the one that it lies in
    for ago in range(sent - 1, -1, -1):
        ledger.run(ago, worker="fast:1")
    assert found(sql).kept == []


def test_a_changed_cadence_that_nobody_tells_is_seen_by_the_distance_of_slots(
    ledger: Ledger, sql: Connection[Any]
) -> None:
    fives = [ago for ago in range(95, 40, -1) if ledger.begins(ago, 5)]
    for ago in fives:
        ledger.run(ago)
    ledger.run(39, covered=fives[-1] - 39 - 1)
    ledger.runs(38)
    findings = found(sql)
    assert findings.kept == []
    assert any(f"every {format_duration(5 * EVERY)}" in note for note in findings.notes)


def test_many_rows_are_read_some_at_a_time(
    ledger: Ledger, sql: Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "AT_ONCE", 7)
    ledger.runs(49)
    seen: list[tuple[int, int]] = []
    with looking_back(sql) as cursor:
        (findings,) = verify(cursor, known(), 60 * EVERY, lambda done, of: seen.append((done, of)))
    assert findings.runs == 50
    assert [done for done, _ in seen] == [7, 14, 21, 28, 35, 42, 49, 50]
    assert {of for _, of in seen} == {50}


def test_nothing_is_written_and_one_moment_is_seen(ledger: Ledger, sql: Connection[Any], database: str) -> None:
    with looking_back(sql) as cursor:
        row = cursor.execute("SELECT current_setting('transaction_read_only') AS a,"
                             " current_setting('transaction_isolation') AS b").fetchone()  # fmt: skip
    assert row == {"a": "on", "b": "repeatable read"}
