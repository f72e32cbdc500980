"""The limit on open files: raised as far as it may be, as Go's runtime does, and refused when that is too little."""

from __future__ import annotations

import resource

from app.core.errors import BootError
from app.core.role import Role
from app.worker.probe_server import MOST_CONNECTIONS

#: Libraries, the log, Dramatiq's pipes, an event loop.
_BASE = 40
#: Connections to Redis beyond one a thread: consumers, the lease, readiness.
_REDIS_EXTRA = 8
#: Of each thread that notifies: its event loop, the connections that it keeps, the pipes of a child.
_NOTIFIER_THREAD = 16
#: Connections to ArgoCDs and to a key service, those that are kept included.
_GITOPS = 80
#: Not raised beyond this: some programs look at each descriptor that there may be.
_ENOUGH = 65_536


def needed(role: Role, *, database_connections: int, gitops: bool) -> int:
    """Return how many files a process with this role may have open at a time."""
    redis = 2 * (role.threads + _REDIS_EXTRA)
    database = 2 * database_connections  # each may have one beside it that cancels its statement
    sinks = _NOTIFIER_THREAD * role.threads if role.notifies else 0
    return _BASE + redis + database + sinks + (MOST_CONNECTIONS if role.first else 0) + (_GITOPS if gitops else 0)


def ensure(files: int) -> None:
    """Raise this process's own limit towards the system's. Raises BootError when that is less than `files`."""
    soft, hard = (_ENOUGH if limit == resource.RLIM_INFINITY else limit for limit in _limits())
    wanted = max(soft, min(hard, _ENOUGH))
    if wanted < files:
        raise BootError(f"at most {wanted} open files are allowed, {files} are needed; raise the limit (ulimit -n)")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, _limits()[1]))
    except (OSError, ValueError):  # macOS has a further limit, and does not say which
        if soft < files:
            raise BootError(f"at most {soft} open files are allowed, {files} are needed; raise the limit") from None


def _limits() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_NOFILE)
