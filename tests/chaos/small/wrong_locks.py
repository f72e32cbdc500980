"""Locks that are wrong: released, renewed or kept by who should not."""

from __future__ import annotations

from tests.chaos.history import History
from tests.chaos.small.book import POLLER, WRAPS, Book
from tests.chaos.small.edits import Mutation


def holding(book: Book, name: str, first: str, last: str) -> History:
    """Return the round in which one lock is held from where the first one of two is taken until the other's end."""
    ends = {("taken", first), ("released", last)}
    kept = [step for step in book.locks if step.name != name or step.token not in {first, last}]
    both = [step for step in book.locks if step.name == name and (step.what, step.token) in ends]
    book.locks = [*kept, *(step._replace(token=first) for step in both)]
    return book.history()


def a_retry_under_the_same_lock(book: Book) -> History:
    """A run fails, and the next one is begun before the lock is released."""
    return holding(book, WRAPS, "fourth", "fifth")


def a_lock_for_two_polls(book: Book) -> History:
    """A lock is held on for the next run."""
    return holding(book, POLLER, "poll 0", "poll 1")


def released(at: float) -> Mutation:
    """Return what has the worker that was killed live on, and release the lock that it had once."""

    def mutation(book: Book) -> History:
        book.lock_step(at, WRAPS, "released", "killed")
        return book.history()

    return mutation


def renewed(name: str, token: str, since: float) -> Mutation:
    """Return what has a lock renewed for three seconds, with runs that get half a one."""

    def mutation(book: Book) -> History:
        book.locks = [step for step in book.locks if (step.what, step.token) != ("released", token)]
        for place in range(1, 16):
            book.lock_step(since + place / 5, name, "renewed", token)
        return book.history()

    return mutation


LOCKS: list[tuple[str, Mutation]] = [
    ("locks", a_retry_under_the_same_lock),
    ("locks", a_lock_for_two_polls),
    ("locks", released(4.2)),
    ("locks", released(4.5)),
    ("locks", renewed(WRAPS, "fifth", 5.05)),
    ("locks", renewed(POLLER, "poll 1", 1.45)),
]
