"""What is committed arrives: each event at each receiver that it is routed to, under its own id, and nothing else does.

What was committed is what the audit has seen, not what the outbox holds in the end. An event is given up only where its
receiver has failed; nothing else keeps one from a receiver, as no round filters any.

A receiver may get the same id again where a fault lies between the two, or where it took longer to answer than it was
waited for: then nobody can know that the first one had arrived. Repeats are counted, and any other one is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tests.chaos.history import History, Received

#: The receiver that is a log.
LOG = "noop"
#: How a notifier notes that it has waited long enough for an answer.
TIMEOUT = "timeout"
#: Seconds that a fault may end before what it has caused is received.
_MARGIN = 1.0


def notifications_arrive(history: History) -> Iterator[str]:
    """Yield what was not delivered, what was delivered and was not received, and what was received of nothing."""
    got: dict[tuple[str, str], list[Received]] = {}
    for received in history.received:
        got.setdefault((received.target, identity(received)), []).append(received)
    yield from _routed(history)
    yield from _tallied(history)
    for change in history.vanished:
        yield f"{change.relation} {change.before['id']} was deleted"
    states = {}
    for delivery in history.deliveries.values():
        key = delivery["target"], delivery["event_id"]
        states[key] = delivery
        if delivery["target"] in history.receivers:
            yield from _delivered(delivery, history, len(got.get(key, ())))
    slow = _given_up_on(history)
    for key, several in got.items():
        yield from _expected(key, several, history, states.get(key))
        if key not in slow:
            yield from _repeated(key, several, history)


def repeats(history: History) -> int:
    """Return how many requests were received that a receiver had taken before, by their ids."""
    return len(history.received) - len({(received.target, identity(received)) for received in history.received})


def identity(received: Received) -> str:
    """Return the id of an event that was received; Slack's is the last word of the message's context."""
    if received.target != "slack":
        return received.id
    texts = [
        element["text"]
        for block in received.body.get("blocks", ())
        if block["type"] == "context"
        for element in block["elements"]
    ]
    return str(texts[-1].split(" · ")[-1]) if texts else ""


def _routed(history: History) -> Iterator[str]:
    """Compare receivers with deliveries; a digest is for one receiver, and none is told that it is itself off."""
    targets: dict[str, set[str]] = {}
    for delivery in history.deliveries.values():
        targets.setdefault(delivery["event_id"], set()).add(delivery["target"])
    for key, event in history.events.items():
        there = targets.get(key, set())
        if event["tallies"]:
            if len(there) != 1:
                yield f"digest {key} has {len(there)} deliveries"
            continue
        off = {event["title"].rpartition(": ")[2]} if "switched off" in event["title"] else set()
        if missing := history.receivers - off - there:
            yield f"event {key} of {event['component']} has no delivery for {', '.join(sorted(missing))}"


def _tallied(history: History) -> Iterator[str]:
    """Compare digests with the events that were told by them."""
    deliveries = history.deliveries.values()
    inside: Counter[int] = Counter(delivery["digest"] for delivery in deliveries if delivery["digest"])
    for delivery in deliveries:
        event = history.events.get(delivery["event_id"])
        if event and event["tallies"]:
            said = sum(tally["events"] for tally in event["tallies"])
            if said != inside[delivery["id"]]:
                yield f"digest {delivery['id']} tells {said} events, and {inside[delivery['id']]} were digested in it"


def _delivered(delivery: Mapping[str, Any], history: History, times: int) -> Iterator[str]:
    """Judge one delivery by its end and by how often it was received."""
    state, what = delivery["state"], f"delivery {delivery['id']} of {delivery['event_id']} to {delivery['target']}"
    if state in {"pending", "sending"}:
        yield f"{what} is still {state}"
    elif state == "delivered" and not times and delivery["target"] != LOG:
        yield f"{what} is delivered, and was never received"
    elif state == "delivered" and times > delivery["attempts"]:
        yield f"{what} was received {times} times in {delivery['attempts']} attempts"
    elif state == "digested":
        digest = history.deliveries.get(delivery["digest"])
        if digest is None or digest["target"] != delivery["target"]:
            yield f"{what} is digested, and its digest is not there"
        elif digest["state"] == "digested":
            yield f"{what} is digested in what is digested itself"
    elif state == "suppressed":
        yield f"{what} is suppressed, for {delivery['reason']!r}, and nothing is to be"
    elif state == "dead" and not (delivery["reason"] and _failed(delivery["target"], history)):
        yield f"{what} is dead, for {delivery['reason']!r}, and its receiver never failed"
    if state in {"digested", "suppressed"} and times:
        yield f"{what} is {state}, and was received {times} times"


def _failed(target: str, history: History) -> bool:
    """Return whether a receiver was made to fail in the round: audit and faults have no clock in common."""
    kind = target.partition(":")[0]
    return any(fault.kind == "sink" and fault.note.partition(":")[0] == kind for fault in history.faults)


def _expected(
    key: tuple[str, str], several: Sequence[Received], history: History, delivery: Mapping[str, Any] | None
) -> Iterator[str]:
    """Compare what was received with what was committed."""
    target, event_id = key
    event = history.events.get(event_id)
    if event is None:
        yield f"{target} received {event_id}, which was never committed"
    elif delivery is None:
        yield f"{target} received {event_id}, and has no delivery of it"
    else:
        for received in several:
            text = received.body.get("title", received.body.get("text", ""))
            if target in history.receivers and event["title"] not in text.replace("&amp;", "&"):
                yield f"{target} received {event_id} with another title"
            if target == "webhook" and received.body.get("metadata", {}) != event["metadata"]:
                yield f"{target} received {event_id} with other numbers"


def _given_up_on(history: History) -> set[tuple[str, str]]:
    """Return receivers and events of which an attempt ended before the answer came, as the notifier has noted it."""
    return {
        (change.after["target"], change.after["event_id"])
        for change in history.changes
        if change.relation == "notification_delivery" and change.after.get("reason") == TIMEOUT
    }


def _repeated(key: tuple[str, str], several: Sequence[Received], history: History) -> Iterator[str]:
    ordered = sorted(received.at for received in several)
    for first, again in pairwise(ordered):
        near = (
            fault.began <= again and (fault.ended is None or fault.ended >= first - _MARGIN) for fault in history.faults
        )
        if not any(near):
            yield f"{key[0]} received {key[1]} again after {again - first:.3f} s, and there was no fault"
