"""What a stop does before there is anything to drain: it ends the process, with status 0."""

from __future__ import annotations

import signal

from app.core.role import Kind, this_process
from app.supervisor import stops
from app.supervisor.stops import EndAtOnce

#: Dramatiq's workers ignore SIGINT, which their main process turns into SIGTERM.
WORKER_STOPS = (signal.SIGTERM, signal.SIGHUP)


def early_stops() -> None:
    """Be ready for stops from now on; to be called before anything is imported that takes long.

    A worker drains from the end of its boot on (`app.worker.middleware.lifecycle`). A scheduler never has anything to
    drain: a tick that was not sent is the next one's. A command is left as it is.
    """
    role = this_process()
    if role.kind is Kind.SCHEDULER:
        stops.end_at_once()
    elif role.works:
        for number in WORKER_STOPS:
            EndAtOnce(number)
