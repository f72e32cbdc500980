"""Every metric of ours, and where its numbers are kept.

Worker processes share their numbers through files in one directory (prometheus_client's multi-process mode, which
Dramatiq's own metrics use as well); any of them can then answer for all. prometheus_client decides for that mode
while it is being imported, so the directory is chosen here, before the import, and made by `prepare`, before the first
metric has a value. Its name has the id of the worker's main process: two replicas on one machine never share numbers.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from app.core.errors import Fault
from app.core.role import this_process

_PREFIX = "secrets-bridge-worker-"


def memory_directory() -> str:
    """Return a writable directory, in memory where there is one: /dev/shm, else the system's temporary folder."""
    shared = Path("/dev/shm")  # noqa: S108 - probed, and only ever written below a folder of our own
    if os.access(shared, os.W_OK):
        return str(shared)
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # then the check of the setting says what to do
        return str(shared)


def prepare() -> None:
    """Make this worker's directory, and remove those whose main process is gone. Nothing outside of a worker.

    To be called before any metric has a value and before Dramatiq's metrics are imported. Raises OSError when the
    directory cannot be made.
    """
    if not this_process().works:
        return
    with suppress(OSError):  # another worker may remove the same ones
        for other in _DIRECTORY.parent.glob(f"{_PREFIX}*"):
            if other != _DIRECTORY and not _alive(other.name.removeprefix(_PREFIX)):
                shutil.rmtree(other, ignore_errors=True)
    _DIRECTORY.mkdir(mode=0o700, exist_ok=True)
    for leftover in _DIRECTORY.glob(f"*_{os.getpid()}.db"):  # of an earlier process with this id
        leftover.unlink(missing_ok=True)
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # a read-only root: Dramatiq's metrics ask for the temporary folder and do not use it
        tempfile.tempdir = str(_DIRECTORY)
    poll_seconds()


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


#: The metric files of this process and its siblings; `sb-worker` and the scheduler have none.
_DIRECTORY = Path(os.environ.get("SB_WORKER_METRICS_DIR") or memory_directory()) / f"{_PREFIX}{os.getppid()}"
if this_process().works:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(_DIRECTORY)
    os.environ["dramatiq_prom_db"] = str(_DIRECTORY)  # noqa: SIM112 - Dramatiq's name for it

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics  # noqa: E402

disable_created_metrics()  # type: ignore[no-untyped-call]

#: The Go worker's buckets.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_REQUEST_SECONDS = (*SECONDS[1:], 30)

# The three families that dashboards of the Go worker know, with their names, labels and buckets.
RUNS = Counter("worker_scheduler_runs_total", "Ticks by how they ended.", ["task", "outcome"])
RUN_SECONDS = Histogram("worker_scheduler_run_duration_seconds", "Duration of one run.", ["task"], buckets=SECONDS)
LOCK_SKIPPED = Counter(
    "worker_scheduler_lock_skipped_total", "Ticks left to the replica that held the lock or had run the slot.", ["task"]
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
    "worker_sweep_lateness_seconds", "From the start of a slot to the start of its run.", ["task"], buckets=SECONDS
)
HANDED_OVER = Counter(
    "worker_sweep_handed_over_total", "Runs that ended with rows left, for lack of time or at shutdown.", ["task"]
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


@cache
def poll_seconds() -> Histogram:
    """Return the histogram of ArgoCD polls. Without labels, it opens its file when it is made: not at import."""
    return Histogram(
        "worker_gitops_poll_duration_seconds",
        "Duration of one poll that was answered, both of its requests.",
        buckets=_REQUEST_SECONDS,
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

_PER_TASK = (
    *(RUN_SECONDS, LOCK_SKIPPED, LAST_SUCCESS, ROWS_CHANGED, BATCHES, BATCH_SECONDS, LATENESS),
    *(HANDED_OVER, LEASE_LOST, FENCED, INTERRUPTED, TICKS_LOST, TABLE_MISSING),
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


def preset(task: str) -> None:
    """Create every series of a task with value zero, so that a rate is right from the first increment on."""
    for outcome in ("success", "failure", "skipped_lock"):
        RUNS.labels(task, outcome)
    for reason in ("stale", "future", "superseded", "lock_error"):
        TICKS_DROPPED.labels(task, reason)
    for metric in _PER_TASK:
        metric.labels(task)
