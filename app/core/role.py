"""What this process is, found out once: a worker's child that serves queues, a scheduler, or an operator's command.

And which deployment it is a process of, as people call it.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

from app.core.bounded_input import content
from app.core.config import Settings, variable

#: The queues: sweepers' ticks, and deliveries to sinks.
SWEEP_QUEUE, SINK_QUEUE = "sweeps", "sinks"

#: Code points of a deployment's name, at most: as many as a label of a host name may have.
MOST_NAME = 63
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def _name(value: str) -> str:
    if not _is_name(value):
        raise ValueError(
            f"not a name; accepted: 1 to {MOST_NAME} printable characters, none of them a blank at its ends"
        )
    return value


def _is_name(text: str) -> bool:
    return 1 <= len(text) <= MOST_NAME and text.isprintable() and text == text.strip()


def usual_name(namespace: Path = _NAMESPACE) -> str:
    """Return what a deployment is called that has no name: its Kubernetes namespace, else this host's name."""
    found = [os.environ.get("POD_NAMESPACE", "")]
    with suppress(OSError, UnicodeDecodeError):
        found.append(content(namespace).decode().strip())
    found.append(socket.gethostname()[:MOST_NAME].strip())
    return next(filter(_is_name, found), "secrets-bridge-worker")


class DeploymentSettings(Settings):
    """What all processes share that work on one database. Others inherit it: it is one variable, read where needed."""

    deployment: Annotated[str, AfterValidator(_name)] = variable(
        "SB_WORKER_NAME",
        default=usual_name(),
        documented="the Kubernetes namespace (POD_NAMESPACE, or the service account's), else the host's name",
        meaning="what this deployment is called in each message to people, such as prod-eu",
    )


class Kind(Enum):
    """Kinds of processes."""

    WORKER = "worker"
    #: A worker that serves the queue of the sinks alone.
    NOTIFIER = "notifier"
    SCHEDULER = "scheduler"
    COMMAND = "command"


@dataclass(frozen=True)
class Role:
    """What a process is."""

    kind: Kind
    #: The queues that it serves.
    queues: frozenset[str] = frozenset()
    #: Whether it is the first among siblings that do the same: it logs for all of them and serves their probes.
    first: bool = True
    #: How many siblings there are, itself included, and the threads of each that work on messages.
    processes: int = 1
    threads: int = 1

    @property
    def works(self) -> bool:
        """Whether it serves queues."""
        return self.kind in (Kind.WORKER, Kind.NOTIFIER)

    @property
    def notifies(self) -> bool:
        """Whether it delivers notifications."""
        return SINK_QUEUE in self.queues


class Replica(NamedTuple):
    """The processes that one `sb-worker run` has started and that one address shows: a worker and what goes with it."""

    #: A name that only they know.
    key: str
    #: The id of the process that runs them, 0 when another worker of it shows how the processes do.
    runner: int


_REPLICA = "SECRETS_BRIDGE_REPLICA"


def new_replica(runner: int) -> dict[str, str]:
    """Return the variable that makes processes members of one new replica."""
    return {_REPLICA: f"{secrets.token_hex(16)}:{runner}"}


def speaks_for_all() -> bool:
    """Return whether this process logs what all of a replica, or of a command's processes, would log alike."""
    role, replica = this_process(), this_replica()
    return role.first and (replica is None or (role.kind is Kind.WORKER and replica.runner > 0))


@cache
def this_replica() -> Replica | None:
    """Return the replica that this process is a member of, None when it is run by itself."""
    key, _, runner = os.environ.get(_REPLICA, "").partition(":")
    return Replica(key, int(runner)) if key and runner.isdecimal() else None


@cache
def this_process() -> Role:
    """Return the role of this process.

    Dramatiq forks or spawns its workers with `multiprocessing`, numbers them, and leaves them its command line;
    periodiq has been imported before it imports us.
    """
    if multiprocessing.parent_process() is None:
        return Role(Kind.SCHEDULER if "periodiq" in sys.modules else Kind.COMMAND)
    from dramatiq.cli import make_argument_parser  # noqa: PLC0415 - only where it has been imported already

    known, _ = make_argument_parser().parse_known_args(sys.argv[1:])  # type: ignore[no-untyped-call]
    queues = frozenset(known.queues or (SWEEP_QUEUE, SINK_QUEUE))
    kind = Kind.NOTIFIER if queues == {SINK_QUEUE} else Kind.WORKER
    first = multiprocessing.current_process().name.endswith("-1")
    return Role(kind, queues, first, known.processes, known.threads)
