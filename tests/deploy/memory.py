"""A limit of memory as a container has it, where this machine lets us set one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


class Limit:
    """A group of processes that may use so much memory together."""

    def __init__(self, group: Path) -> None:
        self.procs = group / "cgroup.procs"
        self._group = group

    @property
    def kills(self) -> int:
        """How many of its processes were killed for lack of memory."""
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                return int(dict(map(str.split, (self._group / name).read_text().splitlines()))["oom_kill"])
        return 0


@contextmanager
def limited(size: int) -> Iterator[Limit | None]:
    """Yield a group with a limit of `size` bytes, below that of this process; None where we may not make one."""
    for parent, name in _places():
        group = parent / f"sb-test-{secrets.token_hex(4)}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / name).write_text(str(size))
        except OSError:
            group.rmdir()
            continue
        try:
            yield Limit(group)
        finally:
            group.rmdir()
        return
    yield None


def _places() -> Iterator[tuple[Path, str]]:
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                yield _ROOT / "memory" / path.strip("/"), "memory.limit_in_bytes"
            if not controllers:
                yield _ROOT / path.strip("/"), "memory.max"
