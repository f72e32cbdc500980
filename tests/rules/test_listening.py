"""No process can be reached but by its probes, and none needs a right, a user of this machine or a file to write."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from psycopg import Connection

from app.demo.ports import reserved_port
from tests.rules.sockets import family, listening
from tests.support.processes import BIN, BY_FORK_SERVER, QUICK, ROOT, SCHEDULER, WORKER, Process, environment
from tests.support.rights.acl import GrantedRedis
from tests.support.rows import FIXED, column, insert_agent
from tests.support.waiting import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")

#: Nobody of this machine; and what is done to a process before it begins: all is read-only but a small /dev/shm, and
#: every right is gone, for good.
NOBODY = 4_000_017
HARDENED = """
set -e
while read -r _ place type _; do
  case $type in proc|sysfs|devpts|devtmpfs|mqueue|cgroup*) ;; *) mount -o remount,bind,ro "$place" || true ;; esac
done < /proc/self/mounts
mount -o remount,bind,ro /
mount -t tmpfs -o mode=1777,size=8m tmpfs /dev/shm
cd "$PLACE"
exec setpriv --reuid="$NOBODY" --regid="$NOBODY" --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
"""
KINDS = {
    "worker": (*WORKER, "--queues", "sweeps"),
    "notifier": (*WORKER, "--queues", "sinks"),
    "scheduler": SCHEDULER,
    "replica": ("sb-worker", "run"),
}


@pytest.fixture
def env(database: str, redis: redis_py.Redis, redis_server: GrantedRedis) -> dict[str, str]:
    del redis  # emptied
    return environment(database, redis_server.url(), **QUICK)


def ours(places: set[str]) -> set[str]:
    """Leave out the socket of Python's own fork server, in a folder that is its user's alone."""
    return {place for place in places if not (BY_FORK_SERVER and place.startswith("unix ") and "pymp-" in place)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_listens_for_its_probes_and_for_nothing_else(
    kind: str, env: dict[str, str], redis: redis_py.Redis, tmp_path: Path
) -> None:
    with reserved_port() as port:
        more = {"SB_NOTIFICATION_LOCAL_ADDR": f"127.0.0.1:{port}"} if kind == "replica" else {}
        with Process(KINDS[kind], {**env, **more}, tmp_path / "log") as process:
            expected = {f"tcp 127.0.0.1:{process.port}"}
            if kind == "scheduler":
                eventually(lambda: redis.llen("dramatiq:sweeps") > 0)
                expected = set()
            else:
                process.ready()
            if kind == "replica":
                expected.add(f"tcp 127.0.0.1:{port}")
                eventually(lambda: listening(process.popen.pid) >= expected)  # both have begun
            assert ours(listening(process.popen.pid)) == expected


def test_whatever_listens_is_found(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(type=socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        udp.bind(("127.0.0.1", 0))
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        found = listening(os.getpid())
        assert found >= {
            f"tcp 127.0.0.1:{tcp.getsockname()[1]}",
            f"udp 127.0.0.1:{udp.getsockname()[1]}",
            f"unix {tmp_path / 's'}",
        }


def hardened(words: tuple[str, ...]) -> list[str]:
    """Return a command that runs another one as nobody, on file systems that nobody writes to; skip without root."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("needs root, to become another user and to lay read-only file systems over this machine's")
    apart = [shutil.which("unshare") or "", "--mount", "--propagation", "private", "sh", "-c", HARDENED, "sh"]
    env = {**os.environ, "PLACE": str(ROOT), "NOBODY": str(NOBODY)}
    which = "import sys, psycopg; print(sys.version)"  # an interpreter in a home that is closed is another one
    probe = [*apart, sys.executable, "-c", which]
    if subprocess.run(probe, env=env, capture_output=True, text=True, check=False).stdout.strip() != sys.version:
        pytest.skip("this machine does not let us mount, or this interpreter is closed to other users")
    return [*apart, str(BIN / words[0]), *words[1:]]


def test_a_replica_runs_as_anybody_without_a_right_and_writes_no_file(
    env: dict[str, str], sql: Connection[Any], tmp_path: Path
) -> None:
    insert_agent(sql, "silent", last_seen_at=FIXED)
    words = hardened(("sb-worker", "run"))
    with reserved_port() as port:
        own = {**env, "PLACE": str(ROOT), "NOBODY": str(NOBODY), "SB_NOTIFICATION_LOCAL_ADDR": f"127.0.0.1:{port}"}
        if BY_FORK_SERVER:
            own["TMPDIR"] = "/dev/shm"  # as docs/operations.md says
        with Process(words, own, tmp_path / "log") as replica:
            replica.ready()
            eventually(lambda: column(sql, "SELECT status FROM agents") == ["stale"])
            for process in family(replica.popen.pid):
                assert set(process.uids()) == set(process.gids()) == {NOBODY}
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                rights = [line.split() for line in status.splitlines() if line.startswith("Cap")]
                assert {int(value, 16) for _, value in rights} == {0}
                root = Path(f"/proc/{process.pid}/mountinfo").read_text(encoding="utf-8").splitlines()
                assert [line.split()[5] for line in root if line.split()[4] == "/"][-1].startswith("ro")
            assert replica.end() == 0
    assert "Traceback" not in replica.text
    assert [record for record in replica.records if record["level"] == "ERROR"] == []
