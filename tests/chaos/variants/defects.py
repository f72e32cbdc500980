"""The defects: what each does to production code, by which check it must be found, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from tests.chaos.variants import broken_notifications, broken_sweeps


class Defect(NamedTuple):
    """A defect and how it is found out."""

    text: str
    #: Patches the process.
    make: Callable[[], None]
    #: The check that is meant for it, and what that says.
    check: str
    says: str
    #: What has to happen, by its name in `provoking`; and in which kind of process it is.
    by: str = "calm"
    kind: str = "worker"
    #: Settings of its own.
    settings: Mapping[str, str] = {}


DEFECTS: Mapping[str, Defect] = {
    "no-fence": Defect(
        "a batch does not look whether a newer run has begun", broken_sweeps.no_fence, "fencing", "wrote", by="stop"
    ),
    "no-slot-mark": Defect(
        "neither Redis nor the claim knows that a slot is done",
        broken_sweeps.no_slot_mark,
        "slots",
        "done it",
        by="late",
    ),
    "covers-too-much": Defect(
        "a run covers a slot that was run", broken_sweeps.covers_too_much, "slots", "that were run"
    ),
    "never": Defect(
        "the ticks of one sweeper are never due", broken_sweeps.never, "standstill", "agents-stale stands", by="rest"
    ),
    "same-token": Defect("a claim gives no new token", broken_sweeps.same_token, "tokens", "bears token"),
    "gives-back-anything": Defect(
        "a run that failed gives back whatever slot is claimed by then",
        broken_sweeps.gives_back_anything,
        "tokens",
        "was given back by a run with token",
        by="cut",
    ),
    "releases-anything": Defect(
        "a lock is released whoever holds it", broken_sweeps.releases_anything, "locks", "which lacks it", by="stop"
    ),
    "retries-inside": Defect(
        "a run that failed is tried again while its lock is held",
        broken_sweeps.retries_inside,
        "locks",
        "runs under one lock",
        by="cut",
        settings={"SB_WORKER_LOCK_LEASE": "2s"},
    ),
    "renews-without-progress": Defect(
        "the lock of a run that is stuck is renewed",
        broken_sweeps.renews_without_progress,
        "locks",
        "is still renewed",
        settings={"SB_WORKER_LOCK_LEASE": "1s"},
    ),
    "unguarded-write": Defect(
        "what was due is deleted without being judged again",
        broken_sweeps.unguarded_write,
        "renewed",
        "were renewed",
        by="renew",
    ),
    "workers-clock": Defect(
        "cutoffs are by the worker's clock, which is ahead", broken_sweeps.workers_clock, "due", "compared with"
    ),
    "early-delete": Defect("wraps are deleted five seconds early", broken_sweeps.early_delete, "due", "was not due"),
    "miscount": Defect("a run counts one row more", broken_sweeps.miscount, "counts", "counted"),
    "forgotten-counts": Defect(
        "what a run that was killed had changed is not told",
        broken_sweeps.forgotten_counts,
        "events",
        "was interrupted",
        by="kill",
    ),
    "event-apart": Defect(
        "an event is committed in a transaction of its own", broken_sweeps.event_apart, "events", "events of no run"
    ),
    "polls-twice": Defect("a poll is counted twice", broken_sweeps.polls_twice, "polls", "polls_count went"),
    "marked-first": Defect(
        "a delivery is marked before it is sent",
        broken_notifications.marked_first,
        "notifications",
        "was never received",
        by="refuse",
        kind="notifier",
    ),
    "new-id": Defect(
        "each attempt has an id of its own",
        broken_notifications.new_id,
        "notifications",
        "was never committed",
        kind="notifier",
    ),
    # Not defects: what some of them need to show soon, in a build that is well.
    "none": Defect("none", broken_sweeps.slow_to_write_down, "", ""),
}
