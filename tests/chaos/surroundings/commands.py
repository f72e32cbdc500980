"""`sb-worker`, typed by an operator while everything goes on: exit statuses as documented, and never a traceback."""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from typing import TYPE_CHECKING

from tests.support.processes import BIN, ROOT

if TYPE_CHECKING:
    from tests.chaos.deployment import Deployment

#: Seconds after which a command counts as hung: it takes one, and minutes on a machine that is busy with all else.
HUNG_COMMAND = 300.0
#: Kinds of faults that leave both servers well: a command has no reason then to fail.
HARMLESS = ("kill", "sink", "argocd", "go", "operator", "pause", "unlock", "mute", "rolling")


def sb_worker(
    deployment: Deployment, *words: str, allowed: Collection[int], unwell: Collection[int] = (1,)
) -> subprocess.CompletedProcess[str] | None:
    """Run a command and return how it ended; None when it hung.

    `allowed` are the exit statuses that it may have while both servers are well, `unwell` those that it may have
    besides in a round in which they are not. What is wrong with it is a remark.
    """
    said = " ".join(words)
    if not harmless(deployment):
        allowed = {*allowed, *unwell}
    try:
        done = subprocess.run(
            [BIN / "sb-worker", *words],
            cwd=ROOT,
            env=deployment.environment("operator"),
            capture_output=True,
            text=True,
            timeout=HUNG_COMMAND,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        deployment.remarks.append(f"sb-worker {said}: hung for {HUNG_COMMAND:.0f} s")
        return None
    if done.returncode not in allowed:
        told = (done.stderr or done.stdout).strip()[-3000:]
        deployment.remarks.append(f"sb-worker {said}: ended with {done.returncode}: {told}")
    for text in (done.stdout, done.stderr):
        if "Traceback" in text:
            deployment.remarks.append(f"sb-worker {said}: a traceback: {text[-600:]}")
        if any(secret in text for secret in ("postgres://", "redis://", "/webhook", "/slack")):
            deployment.remarks.append(f"sb-worker {said}: shows a URL")
    return done


def harmless(deployment: Deployment) -> bool:
    """Return whether no fault of this round has hurt a server."""
    return all(fault.kind.startswith(HARMLESS) for fault in deployment.log.faults)
