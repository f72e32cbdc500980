"""One incident, from its beginning to its end: what an operator types, and sees."""

from __future__ import annotations

import re
import subprocess
from typing import NamedTuple

from tests.drill.deployment import Deployment
from tests.drill.incidents import Incident, pause
from tests.support.waiting import HUNG_PROCESS, eventually


class Record(NamedTuple):
    """What was seen: the screen that tells of the incident, and the step that mended it."""

    incident: Incident
    screen: str
    mended: str


def status(deployment: Deployment) -> subprocess.CompletedProcess[str]:
    """Ask for the status."""
    pause()
    return deployment.command("sb-worker status")


def fine(deployment: Deployment) -> None:
    """Wait until nothing is wrong."""
    seen: list[str] = []

    def is_fine() -> bool:
        asked = status(deployment)
        seen[:] = [asked.stdout + asked.stderr]
        return asked.returncode == 0

    try:
        eventually(is_fine, HUNG_PROCESS)
    except AssertionError:
        raise AssertionError(f"it did not become fine:\n{seen[0]}") from None


def drill(deployment: Deployment, incident: Incident) -> Record:
    """Have it happen, find it by one command, mend it by a second, and see that all is well again."""
    fine(deployment)
    seen: list[subprocess.CompletedProcess[str]] = []

    def is_found() -> bool:
        seen[:] = [status(deployment)]
        return seen[0].returncode == incident.status and re.search(incident.found, seen[0].stdout) is not None

    with incident.provoked(deployment):
        try:
            eventually(is_found, HUNG_PROCESS)
        except AssertionError:
            raise AssertionError(f"not found by its screen:\n{seen[0].stdout}{seen[0].stderr}") from None
        mended = incident.mended(deployment)
    fine(deployment)
    return Record(incident, seen[0].stdout, mended)
