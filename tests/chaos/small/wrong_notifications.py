"""Notifications that are wrong: lost, doubled, or of something else."""

from __future__ import annotations

import dataclasses
from typing import Any

from tests.chaos.checks.notifications import identity
from tests.chaos.history import History
from tests.chaos.small.book import Book
from tests.chaos.small.edits import Mutation
from tests.chaos.surroundings.outside import RECEIVERS


def delivered(**columns: Any) -> Mutation:
    """Return what changes the delivery of the first event to the webhook."""

    def mutation(book: Book) -> History:
        place = next(place for place, row in enumerate(book.deliveries) if row["target"] == "webhook")
        book.deliveries[place] = {**book.deliveries[place], **columns}
        return book.history()

    return mutation


def no_delivery(book: Book) -> History:
    """A receiver has no delivery of an event."""
    book.deliveries.pop(1)
    book.received.pop(0)
    return book.history()


def no_mail(book: Book) -> History:
    """Mail is configured, and was never sent."""
    return dataclasses.replace(book.history(), receivers=RECEIVERS | {"email:19ab8d68"})


def an_event_deleted(book: Book) -> History:
    """An event is gone from the outbox before anybody was told."""
    event = book.events.pop()
    book.deliveries = [row for row in book.deliveries if row["event_id"] != event["id"]]
    book.received = [one for one in book.received if identity(one) != event["id"]]
    book.note("notification_event", "delete", event, {}, "worker0")
    return book.history()


def given_up_without_a_fault(book: Book) -> History:
    """Nobody is told of anything, and no receiver has failed."""
    book.deliveries = [{**row, "state": "dead", "reason": "rejected"} for row in book.deliveries]
    book.received.clear()
    return book.history()


def never_received(book: Book) -> History:
    """A delivery was marked, and never sent."""
    book.received.pop(0)
    return book.history()


def under_another_id(book: Book) -> History:
    """An event is sent once more, under an id of its own."""
    book.received.append(book.received[0]._replace(id="another"))
    return book.history()


def again_without_a_fault(book: Book) -> History:
    """The same id comes twice, and there was no fault."""
    book.received.append(book.received[0]._replace(at=0.5))
    return delivered(attempts=2)(book)


def with_other_numbers(book: Book) -> History:
    """What is received is not what was committed."""
    first = book.received[0]
    book.received[0] = first._replace(body={**first.body, "metadata": {"deleted": 99}})
    return book.history()


NOTIFICATIONS: list[tuple[str, Mutation]] = [
    ("notifications", no_delivery),
    ("notifications", no_mail),
    ("notifications", never_received),
    ("notifications", an_event_deleted),
    ("notifications", given_up_without_a_fault),
    ("notifications", under_another_id),
    ("notifications", again_without_a_fault),
    ("notifications", with_other_numbers),
    ("notifications", delivered(state="pending")),
    ("notifications", delivered(state="suppressed", reason="severity")),
    ("notifications", delivered(state="digested")),
]
