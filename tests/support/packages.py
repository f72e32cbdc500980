"""Programs of the system's packages that tests use as they are."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

#: What CI has installed: a test that does not find such a program is broken, not to be skipped.
_INSTALLED = os.environ.get("REQUIRE_PACKAGES", "").split()
_PLACES = ("/usr/sbin", "/usr/local/sbin")


def program(name: str, package: str) -> Path:
    """Return a program's path; skip the test when the package is not installed.

    Those of our own environment's wheels do not count: they were built without TLS.
    """
    folders = (*os.environ.get("PATH", "").split(os.pathsep), *_PLACES)
    path = os.pathsep.join(folder for folder in folders if Path(folder) != Path(sys.executable).parent)
    if (found := shutil.which(name, path=path)) is None:
        missing(package)
    return Path(found)


def postgres_with_tls() -> Path:
    """Return the directory of a system's PostgreSQL, which speaks TLS; skip the test when there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        missing("postgresql")
    return found[-1].parent


def missing(package: str) -> NoReturn:
    """Skip the test, or fail it where the package should be there."""
    __tracebackhide__ = True
    if package in _INSTALLED:
        pytest.fail(f"{package} should be installed here, and is not found")
    pytest.skip(f"needs the system's package {package}")
