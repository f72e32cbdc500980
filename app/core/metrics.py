"""Every metric of ours, and where its numbers are kept.

A worker that is run by itself keeps them in memory. The processes of one command, and those of one replica, share
theirs through files, so that one of them can answer for all: `app.core.shared_values`. `prepare` decides, before the
first metric has a value.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from functools import cache
from itertools import product
from pathlib import Path

import structlog
from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    REGISTRY,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    values,
)

from app.core.errors import Fault
from app.core.role import this_process, this_replica
from app.core.shared_values import SharedValues, join

log = structlog.get_logger("worker")

disable_created_metrics()  # type: ignore[no-untyped-call]
for _collector in (GC_COLLECTOR, PLATFORM_COLLECTOR):  # of Python, not of this worker
    REGISTRY.unregister(_collector)


def memory_directory() -> str:
    """Return a writable directory, in memory where there is one: /dev/shm, else the system's temporary folder."""
    shared = Path("/dev/shm")  # noqa: S108 - probed, and only ever written below a folder of our own
    if os.access(shared, os.W_OK):
        return str(shared)
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # then the check of the setting says what to do
        return str(shared)


def prepare(directory: str) -> SharedValues | None:
    """Choose where numbers are kept, before any metric has one; return what siblings share, None for a process alone.

    When they cannot share, each keeps its own: no metric is worth a worker.
    """
    role, shared = this_process(), None
    if role.works and (role.processes > 1 or this_replica()):
        try:
            shared = SharedValues(join(Path(directory)))
        except OSError as error:
            log.warning("no room for metrics; the first process shows its own only", error=error, errno=error.errno)
    # Always said: PROMETHEUS_MULTIPROC_DIR, should it be set, would choose prometheus_client's files.
    values.ValueClass = shared.value if shared else values.MutexValue
    poll_seconds()
    return shared


#: The Go worker's buckets.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_REQUEST_SECONDS = (*SECONDS[1:], 30)

# The three families that dashboards of the Go worker know, with their names, labels and buckets.
RUNS = Counter("worker_scheduler_runs_total", "Ticks by how they ended.", ["task", "outcome"])
RUN_SECONDS = Histogram("worker_scheduler_run_duration_seconds", "Duration of one run.", ["task"], buckets=SECONDS)
LOCK_SKIPPED = Counter(
    "worker_scheduler_lock_skipped_total", "Ticks left to the replica that held the lock or had run the slot.", ["task"]
)

ROWS_CHANGED = Counter("worker_sweep_rows_changed_total", "Rows deleted, flipped or inserted.", ["task"])
BATCHES = Counter("worker_sweep_batches_total", "Transactions committed.", ["task"])
BATCH_SECONDS = Histogram(
    "worker_sweep_batch_duration_seconds",
    "Duration of one transaction, which is how long its rows stay locked.",
    ["task"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 1, 5),
)
LATENESS = Histogram(
    "worker_sweep_lateness_seconds", "From the start of a slot to the start of its run.", ["task"], buckets=SECONDS
)
HANDED_OVER = Counter(
    "worker_sweep_handed_over_total", "Runs that ended with rows left, for lack of time or at shutdown.", ["task"]
)
RUNS_A_PASS = Gauge(
    "worker_sweep_pass_runs",
    "Runs that a pass through the whole table takes: more than 1 where it is large and has no index for the sweep.",
    ["task"],
    multiprocess_mode="mostrecent",
)
LEASE_LOST = Counter("worker_sweep_lease_lost_total", "Locks lost while a run held them.", ["task"])
FENCED = Counter("worker_sweep_fenced_batches_total", "Batches refused because a newer run had begun.", ["task"])
ROWS_FAILED = Counter("worker_sweep_rows_failed_total", "Rows that could not be written, and were skipped.", ["task"])
SKIPPED_LOCKED = Counter(
    "worker_sweep_rows_locked_total", "Rows left for the next run because somebody else held them.", ["task"]
)
INTERRUPTED = Counter("worker_sweep_interrupted_total", "Runs found unfinished by their successor.", ["task"])
TICKS_DROPPED = Counter("worker_sweep_ticks_dropped_total", "Ticks that no run was made for.", ["task", "reason"])
TICKS_LOST = Counter(
    "worker_scheduler_ticks_lost_total",
    "Ticks that a scheduler could not send because Redis was away; told by the next tick that it sent.",
    ["task"],
)
TABLE_MISSING = Gauge(
    "worker_sweep_table_missing",
    "1 while the api's table that a sweeper needs is not there.",
    ["task"],
    multiprocess_mode="mostrecent",
)

CONNECTIONS_LOST = Counter(
    "worker_postgres_connections_lost_total",
    "Connections given up: silent ones gave no answer in time, standby ones lead to a server that takes no writes.",
    ["reason"],
)
LOST = ("silent", "standby")
CLOCK_SKEW = Gauge(
    "worker_clock_skew_seconds",
    "How far a clock is ahead of PostgreSQL's, whose slots count.",
    ["clock"],
    multiprocess_mode="mostrecent",
)
CLOCKS = ("scheduler", "redis", "worker")
TARGETS_SKIPPED = Counter(
    "worker_discover_targets_skipped_total", "Discover targets whose agent is unknown or revoked.", ["task"]
)
SIGNS_OF_LIFE = Counter("worker_signs_of_life_total", "Signs of life that processes gave in PostgreSQL.", ["outcome"])
BUILD_INFO = Gauge("worker_build_info", "1, with the version.", ["version"], multiprocess_mode="max")

GITOPS_POLLS = Counter("worker_gitops_polls_total", "Polls of ArgoCD by how they ended.", ["outcome"])


@cache
def poll_seconds() -> Histogram:
    """Return the histogram of ArgoCD polls. Without labels, it has a number when it is made: not at import."""
    return Histogram(
        "worker_gitops_poll_duration_seconds",
        "Duration of one poll that was answered, both of its requests.",
        buckets=_REQUEST_SECONDS,
    )


@cache
def relay_last_success() -> Gauge:
    """Return the gauge of the relay, made on demand for the same reason: only who serves the sinks has it."""
    return Gauge(
        "worker_notification_relay_last_success_timestamp_seconds",
        "When the relay last ended well in this replica, Unix time by Redis; 0 before.",
        multiprocess_mode="max",
    )


ATTEMPTS = Counter(
    "worker_notification_attempts_total",
    "Attempts to notify by how they ended; reason is empty for delivered ones.",
    ["sink", "outcome", "reason"],
)
ATTEMPT_SECONDS = Histogram(
    "worker_notification_attempt_duration_seconds", "Duration of one attempt.", ["sink"], buckets=_REQUEST_SECONDS
)
DELIVERY_AGE = Histogram(
    "worker_notification_delivery_age_seconds",
    "From an event to its delivery.",
    ["sink"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 900, 3600, 14400, 86400),
)
NOTIFIED = Counter(
    "worker_notification_deliveries_total",
    "Deliveries by how they ended; suppressed ones never began.",
    ["sink", "state"],
)

HEARTBEATS = Counter("worker_heartbeat_total", "GETs to the dead man's switch outside, by how they ended.", ["outcome"])

MESSAGES_MALFORMED = Counter(
    "worker_messages_malformed_total",
    "Messages that no actor could be called with, by what is wrong.",
    ["queue", "fault"],
)

_PER_TASK = (
    ROWS_FAILED,
    SKIPPED_LOCKED,
    *(RUN_SECONDS, LOCK_SKIPPED, ROWS_CHANGED, BATCHES, BATCH_SECONDS, LATENESS),
    *(HANDED_OVER, RUNS_A_PASS, LEASE_LOST, FENCED, INTERRUPTED, TICKS_LOST, TABLE_MISSING),
)


def preset_sink(sink: str) -> None:
    """Create every series of a sink with value zero, for the same reason as `preset`."""
    ATTEMPTS.labels(sink, "delivered", "")
    for fault in Fault:
        ATTEMPTS.labels(sink, "rejected", fault.value)
        ATTEMPTS.labels(sink, "unavailable", fault.value)
    for state in ("delivered", "digested", "suppressed", "dead"):
        NOTIFIED.labels(sink, state)
    ATTEMPT_SECONDS.labels(sink)
    DELIVERY_AGE.labels(sink)


def preset_polls(outcomes: Iterable[str]) -> None:
    """Create every series of the polls with value zero, for the same reason as `preset`."""
    for outcome in outcomes:
        GITOPS_POLLS.labels(outcome)


def preset_heartbeat() -> None:
    """Create both series of heartbeats with value zero, for the same reason as `preset`."""
    for outcome in ("success", "failure"):
        HEARTBEATS.labels(outcome)


def preset_process() -> None:
    """Create every series that is about the process with value zero."""
    for reason in LOST:
        CONNECTIONS_LOST.labels(reason)
    for clock in CLOCKS:
        CLOCK_SKEW.labels(clock)
    for outcome in ("success", "failure"):
        SIGNS_OF_LIFE.labels(outcome)


def preset_messages(queues: Iterable[str], faults: Iterable[str]) -> None:
    """Create every series of malformed messages with value zero, for the same reason as `preset`."""
    for queue, fault in product(queues, faults):
        MESSAGES_MALFORMED.labels(queue, fault)


def preset(task: str) -> None:
    """Create every series of a task with value zero, so that a rate is right from the first increment on."""
    for outcome in ("success", "failure", "skipped_lock"):
        RUNS.labels(task, outcome)
    for reason in ("stale", "superseded", "lock_error", "paused", "braked"):
        TICKS_DROPPED.labels(task, reason)
    for metric in _PER_TASK:
        metric.labels(task)
