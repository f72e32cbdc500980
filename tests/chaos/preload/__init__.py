"""Libraries that are preloaded into servers and processes: a clock that can be moved, a disk that can be full.

Each has a switch: eight bytes of a file that the process maps, so that it can be turned while the process runs. They
are compiled once a round, by gcc; what needs one is left out where there is none.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
GCC = shutil.which("gcc")


class Switch:
    """A number that a library reads at each call."""

    def __init__(self, directory: Path, name: str, what: str) -> None:
        self._file = directory / f"{name}.{what}"
        #: What it is turned to.
        self.value = 0

    def turn(self, value: int) -> None:
        """Turn it to this value; from 0 on."""
        self.value = value
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("q", value))

    @property
    def file(self) -> Path:
        """The file, which whoever the library is loaded into may read."""
        if not self._file.exists():
            self.turn(0)
            self._file.chmod(0o644)
        return self._file


def clock(directory: Path, name: str) -> Switch:
    """Return how many seconds a process's or a server's clock is ahead of the machine's."""
    return Switch(directory, name, "ahead")


def disk(directory: Path, name: str) -> Switch:
    """Return whether a server's disk is full (1) or not (0)."""
    return Switch(directory, name, "full")


def moves_clock(environment: Mapping[str, str]) -> bool:
    """Return whether a process that is started with this has a clock that can be moved."""
    return "CHAOS_CLOCK" in environment


def preloaded(
    directory: Path, *, clocks: Sequence[str] = (), disks: Sequence[str] = ()
) -> Mapping[str, Mapping[str, str]]:
    """Return the environments of processes and servers that have such clocks and disks; none without gcc."""
    if GCC is None:
        return {}
    found: dict[str, dict[str, str]] = {}
    for names, library, variable, switch in (
        (clocks, "clock", "CHAOS_CLOCK", clock),
        (disks, "disk", "CHAOS_DISK", disk),
    ):
        for name in names:
            env = found.setdefault(name, {})
            env[variable] = str(switch(directory, name).file)
            before = [env["LD_PRELOAD"]] if "LD_PRELOAD" in env else []
            env["LD_PRELOAD"] = " ".join([*before, str(_compiled(directory, library))])
    return found


def _compiled(directory: Path, name: str) -> Path:
    library = directory / f"{name}.so"
    if not library.exists():
        assert GCC is not None
        command = [GCC, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(HERE / f"{name}.c")]
        subprocess.run(command, check=True)
        library.chmod(0o755)
    return library
