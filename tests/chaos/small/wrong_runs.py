"""Runs that are wrong: claims, tokens, what was swept, and what is told of it."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

from tests.chaos.history import History
from tests.chaos.small.book import BEGAN, SECOND, WRAPS, Book
from tests.chaos.small.edits import Mutation, edited, of, rerun, row_of
from tests.support.go_replica import Held


def a_slot_run_again(book: Book) -> History:
    """Nothing keeps a slot that was done from being claimed."""
    return rerun(book, 5)


def an_older_slot(book: Book) -> History:
    """A slot is run after a newer one."""
    book.states[WRAPS]["last_slot"] = (BEGAN + 3 * SECOND).isoformat()
    return rerun(book, 4)


def a_slot_left_out(book: Book) -> History:
    """Two slots are missed, and one is covered."""
    return rerun(book, 8, covered=1)


def a_slot_covered_twice(book: Book) -> History:
    """What was run is covered as well."""
    return rerun(book, 6, covered=1)


def a_success_overwritten(book: Book) -> History:
    """A success is made something else, and then its slot is run once more."""
    book.transaction(5.5)
    book.run(5, outcome="interrupted")
    return rerun(book, 5, covered=1)


def a_claim_ahead_of_time(book: Book) -> History:
    """A slot is claimed long before it has come."""
    return rerun(book, 60, covered=54)


def the_same_token(book: Book) -> History:
    """A claim gives no new token."""
    book.transaction(6.1)
    book.claim(6, WRAPS, 6)
    last = book.changes[-2]
    book.changes[-2] = last._replace(after=row_of(last, token=last.before["token"]))
    book.step(6, 0, "success")
    return book.history()


def a_smaller_token(book: Book) -> History:
    """A claim gives a token that was given before."""
    book.states[WRAPS] = {**book.states[WRAPS], "token": 1}
    return rerun(book, 6)


def a_strangers_slot_given_back(book: Book) -> History:
    """A run gives back the slot that its successor has claimed."""
    book.transaction(6.1)
    book.claim(6, WRAPS, 6)
    book.transaction(6.2)
    book.run(4, outcome="failure")
    book.state(WRAPS, last_slot=book.states[WRAPS]["previous_slot"])
    book.transaction(6.3)
    book.step(6, 0, "success")
    return book.history()


def a_write_after_the_next_claim(book: Book) -> History:
    """A run that is closed goes on: its rows are changed under an old token."""
    book.transaction(5.5)
    book.step(2, 1, "interrupted")
    return book.history()


def a_commit_after_the_next_claim(book: Book) -> History:
    """By PostgreSQL's own clock a run was committed when the next one had been."""
    history = book.history()
    xid = next(change.xid for change in book.changes if of("sweep_run", "update", id=1, outcome="success")(change))
    return dataclasses.replace(history, commits={**history.commits, xid: BEGAN + 4 * SECOND})


def rows_of_no_run(book: Book) -> History:
    """Rows are changed by a transaction that is of no run."""
    book.transaction(5.5)
    book.note("secrets", "update", {"status": "present"}, {"status": "missing"}, "worker1")
    return book.history()


def a_row_that_was_not_due(book: Book) -> History:
    """A wrap is deleted before its end."""
    end = (BEGAN + timedelta(hours=1)).isoformat()
    return edited(book, of("secret_wraps", "delete"), before={"id": "w", "expires_at": end})


def a_cutoff_by_another_clock(book: Book) -> History:
    """A run compares with a clock that is not the database's."""
    ahead = (BEGAN + timedelta(minutes=10)).isoformat()
    place = next(place for place, change in enumerate(book.changes) if of("sweep_run", "insert", id=1)(change))
    return edited(book, of("sweep_run", "insert", id=1), after=row_of(book.changes[place], cutoff=ahead))


def another_sweepers_row(book: Book) -> History:
    """A sweeper changes a table that is not its own."""
    book.transaction(6.1)
    book.claim(6, WRAPS, 6)
    secret = {"id": "s", "status": "present", "last_seen_at": (BEGAN - timedelta(days=2)).isoformat()}
    book.note("secrets", "update", secret, {**secret, "status": "missing"}, "worker0")
    book.step(6, 0, "success")
    return book.history()


def a_renewed_wrap_lost(book: Book) -> History:
    """A wrap that was renewed is gone."""
    return dataclasses.replace(book.history(), renewed_and_lost={"secret_wraps": 1})


def a_renewed_secret_lost(book: Book) -> History:
    """Secrets that were renewed were flipped."""
    return dataclasses.replace(book.history(), renewed_and_lost={"secret_wraps": 0, "secrets": 2})


def one_too_many_counted(book: Book) -> History:
    """A step counts a row that it has not deleted."""
    book.transaction(6.1)
    book.claim(6, WRAPS, 6)
    book.step(6, 1)
    book.changes.pop(-2)
    book.transaction(6.2)
    book.step(6, 0, "success")
    book.event(deleted=1)
    return book.history()


def another_number_told(book: Book) -> History:
    """People are told of more than was changed."""
    book.transaction(6.1)
    book.claim(6, WRAPS, 6)
    book.step(6, 1, "success")
    book.event(deleted=2)
    return book.history()


def another_number_in_the_ledger(book: Book) -> History:
    """The ledger says something else in the end than when it was committed."""
    history = book.history()
    return dataclasses.replace(history, runs=[{**history.runs[0], "changed": 7}, *history.runs[1:]])


def an_untold_run(book: Book) -> History:
    """A run that changed something has no event."""
    book.transaction(6.1)
    book.claim(6, WRAPS, 6)
    book.step(6, 1, "success")
    return book.history()


def an_event_in_its_own_transaction(book: Book) -> History:
    """The event of a run is committed after it, on its own."""
    book.transaction(6.1)
    book.claim(6, WRAPS, 6)
    book.step(6, 1, "success")
    book.transaction(6.2)
    book.event(deleted=1)
    return book.history()


def a_failure_told_twice(book: Book) -> History:
    """A streak is told with its second failure as well."""
    book.transaction(6.1)
    book.state(WRAPS, failures=1)
    book.event("failed")
    book.transaction(6.2)
    book.state(WRAPS, failures=2)
    book.event("failed")
    return book.history()


def an_end_that_is_not_told(book: Book) -> History:
    """A streak that was told ends, and nobody hears of it."""
    book.transaction(6.1)
    book.state(WRAPS, failures=1)
    book.event("failed")
    book.transaction(6.2)
    book.state(WRAPS, failures=0)
    return book.history()


def polls_backwards(book: Book) -> History:
    """An observation's number of polls goes back."""
    place = next(change for change in book.changes if change.relation == "gitops_observations")
    return edited(book, of("gitops_observations", "update"), 1, after=row_of(place, polls_count=0))


def a_second_job(book: Book) -> History:
    """A connection is discovered by two jobs at once."""
    for job in ("one", "two"):
        row = {"id": job, "job_type": "discover", "status": "queued", "payload": {"connection_id": "c"}}
        book.note("sync_jobs", "insert", {}, row, "worker0")
        book.changes[-1] = book.changes[-1]._replace(ours=False)
    return book.history()


def beside_the_go_worker(book: Book) -> History:
    """A run of ours is not over when the Go worker has the lock."""
    held = Held(WRAPS, BEGAN + timedelta(seconds=0.15), BEGAN + timedelta(seconds=0.3), 1)
    history = dataclasses.replace(book.history(), go_held=[held])
    return dataclasses.replace(history, faults=[dataclasses.replace(history.faults[0], kind="go")])


def a_poll_after_the_end(book: Book) -> History:
    """A result is written over an observation that has come to its end."""
    row = {"id": "o", "polling_state": "applied", "polls_count": 1, "timeout_at": None}
    return edited(book, of("gitops_observations", "update"), 1, before=row, after={**row, "polls_count": 2})


RUNS: list[tuple[str, Mutation]] = [
    ("slots", a_slot_run_again),
    ("slots", an_older_slot),
    ("slots", a_slot_left_out),
    ("slots", a_slot_covered_twice),
    ("slots", a_success_overwritten),
    ("slots", a_claim_ahead_of_time),
    ("tokens", the_same_token),
    ("tokens", a_smaller_token),
    ("tokens", a_strangers_slot_given_back),
    ("fencing", a_write_after_the_next_claim),
    ("fencing", a_commit_after_the_next_claim),
    ("fencing", rows_of_no_run),
    ("due", a_row_that_was_not_due),
    ("due", a_cutoff_by_another_clock),
    ("due", another_sweepers_row),
    ("renewed", a_renewed_wrap_lost),
    ("renewed", a_renewed_secret_lost),
    ("counts", one_too_many_counted),
    ("counts", another_number_told),
    ("counts", another_number_in_the_ledger),
    ("events", an_untold_run),
    ("events", an_event_in_its_own_transaction),
    ("events", a_failure_told_twice),
    ("events", an_end_that_is_not_told),
    ("polls", polls_backwards),
    ("polls", a_poll_after_the_end),
    ("targets", a_second_job),
    ("go", beside_the_go_worker),
]
