"""What may be wrong with a round, each with the check that is meant for it."""

from __future__ import annotations

import dataclasses
from typing import Any

from tests.chaos.fault_log import Fault
from tests.chaos.history import Leftover
from tests.chaos.small.book import POLLER, WRAPS
from tests.chaos.small.edits import Mutation
from tests.chaos.small.wrong_locks import LOCKS
from tests.chaos.small.wrong_notifications import NOTIFICATIONS
from tests.chaos.small.wrong_runs import RUNS
from tests.chaos.watch import Success


def with_(**columns: Any) -> Mutation:
    """Return what changes what is beside the audit."""
    return lambda book: dataclasses.replace(book.history(), **columns)


LATE = [*(Success(at, name) for at in (1, 2, 9, 10, 11) for name in (WRAPS, POLLER))]
BESIDE: list[tuple[str, Mutation]] = [
    ("remarks", with_(remarks=["`sb-worker why` ended with status 70"])),
    ("standstill", with_(calm=11.5)),
    ("deaths", with_(deaths=["worker0 ended by itself with status 1"])),
    ("deaths", with_(deaths=["scheduler1 ended by itself with status -11"])),
    ("leftovers", with_(leftovers=[Leftover("lock", "wraps-expired")])),
    ("leftovers", with_(leftovers=[Leftover("open", "3 deliveries and 0 runs are open after 60 s")])),
    ("gaps", with_(successes=LATE)),
    ("gaps", with_(watched=(0.0, 30.0))),
    ("gaps", with_(successes=LATE, faults=[Fault("stop", 2.5, outage=False, ended=8.5)])),
]
MUTATIONS = [*RUNS, *NOTIFICATIONS, *LOCKS, *BESIDE]
