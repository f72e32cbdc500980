"""Every metric of ours, and where its numbers live.

Worker processes share their numbers through files in one directory (prometheus_client's multi-process mode, which
Dramatiq's own metrics use as well); any of them can then answer for all. prometheus_client decides for that mode
while it is being imported, so the directory is chosen here, before the import. The directory carries the id of the
worker's main process: two replicas on one machine never share numbers.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from app.core.errors import Fault

_PREFIX = "secrets-bridge-worker-"


def memory_directory() -> str:
    """Name a writable directory, in memory where there is one: /dev/shm, else the system's temporary folder."""
    shared = Path("/dev/shm")  # noqa: S108 - probed, and only ever written below a folder of our own
    if os.access(shared, os.W_OK):
        return str(shared)
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # then the check of the setting says what to do
        return str(shared)


def directory() -> Path:
    """Give the directory of this worker's metric files: one for the main process and its children."""
    parent = os.environ.get("SB_WORKER_METRICS_DIR") or memory_directory()
    return Path(parent) / f"{_PREFIX}{os.getppid()}"


def _prepare() -> None:
    """Make the directory, and remove those whose main process is gone."""
    mine = directory()
    with suppress(OSError):
        for other in mine.parent.glob(f"{_PREFIX}*"):
            if other != mine and not _alive(other.name.removeprefix(_PREFIX)):
                shutil.rmtree(other, ignore_errors=True)
        mine.mkdir(mode=0o700, exist_ok=True)
        for leftover in mine.glob(f"*_{os.getpid()}.db"):  # of an earlier process with this id
            leftover.unlink(missing_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(mine)
    os.environ["dramatiq_prom_db"] = str(mine)  # noqa: SIM112 - Dramatiq's name for it
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # a read-only root: Dramatiq's metrics ask for the temporary folder and do not use it
        tempfile.tempdir = str(mine)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


#: Whether this process is one of a Dramatiq command's workers, whose numbers are scraped.
IN_WORKER = multiprocessing.parent_process() is not None
if IN_WORKER:
    _prepare()

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics  # noqa: E402

disable_created_metrics()  # type: ignore[no-untyped-call]

#: The Go worker's buckets.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
OUTCOMES = ("success", "failure", "skipped_lock")
DROPPED = ("stale", "future", "superseded", "lock_error")

# The three families that dashboards of the Go worker know, with their names, labels and buckets.
RUNS = Counter("worker_scheduler_runs_total", "Ticks by how they ended.", ["task", "outcome"])
RUN_SECONDS = Histogram("worker_scheduler_run_duration_seconds", "Duration of one run.", ["task"], buckets=SECONDS)
LOCK_SKIPPED = Counter(
    "worker_scheduler_lock_skipped_total",
    "Ticks left to the replica that held the lock or had run the slot.",
    ["task"],
)

LAST_SUCCESS = Gauge(
    "worker_sweep_last_success_timestamp_seconds",
    "When a run last ended well in this replica, Unix time.",
    ["task"],
    multiprocess_mode="max",
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
    "worker_sweep_lateness_seconds",
    "From the start of a slot to the start of its run.",
    ["task"],
    buckets=SECONDS,
)
HANDED_OVER = Counter(
    "worker_sweep_handed_over_total",
    "Runs that ended with rows left, for lack of time or at shutdown.",
    ["task"],
)
LEASE_LOST = Counter("worker_sweep_lease_lost_total", "Locks lost while a run held them.", ["task"])
FENCED = Counter("worker_sweep_fenced_batches_total", "Batches refused because a newer run had begun.", ["task"])
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
TARGETS_SKIPPED = Counter(
    "worker_discover_targets_skipped_total", "Discover targets whose agent is unknown or revoked.", ["task"]
)
BUILD_INFO = Gauge("worker_build_info", "1, with the version.", ["version"], multiprocess_mode="max")

GITOPS_POLLS = Counter("worker_gitops_polls_total", "Polls of ArgoCD by how they ended.", ["outcome"])
GITOPS_POLL_SECONDS = Histogram(
    "worker_gitops_poll_duration_seconds",
    "Duration of one poll that was answered, both of its requests.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)

ATTEMPTS = Counter(
    "worker_notification_attempts_total",
    "Attempts to notify by how they ended; reason is empty for delivered ones.",
    ["sink", "outcome", "reason"],
)
ATTEMPT_SECONDS = Histogram(
    "worker_notification_attempt_duration_seconds",
    "Duration of one attempt.",
    ["sink"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
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
STATES = ("delivered", "digested", "suppressed", "dead")

_PER_TASK = (RUN_SECONDS, LOCK_SKIPPED, LAST_SUCCESS, ROWS_CHANGED, BATCHES, BATCH_SECONDS, LATENESS)
_PER_TASK_TOO = (HANDED_OVER, LEASE_LOST, FENCED, INTERRUPTED, TICKS_LOST, TABLE_MISSING)


def preset_sink(sink: str) -> None:
    """Create every series of a sink with value zero."""
    ATTEMPTS.labels(sink, "delivered", "")
    for fault in Fault:
        ATTEMPTS.labels(sink, "rejected", fault.value)
        ATTEMPTS.labels(sink, "unavailable", fault.value)
    for state in STATES:
        NOTIFIED.labels(sink, state)
    ATTEMPT_SECONDS.labels(sink)
    DELIVERY_AGE.labels(sink)


def preset_polls(outcomes: Iterable[str]) -> None:
    """Create every series of the polls with value zero."""
    for outcome in outcomes:
        GITOPS_POLLS.labels(outcome)


def preset(task: str) -> None:
    """Create every series of a task with value zero, so that a rate is right from the first increment on."""
    for outcome in OUTCOMES:
        RUNS.labels(task, outcome)
    for reason in DROPPED:
        TICKS_DROPPED.labels(task, reason)
    for metric in (*_PER_TASK, *_PER_TASK_TOO):
        metric.labels(task)
