"""An operator who looks all the time: probes, metrics and the page twice a second, commands now and then."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Self

from tests.soak.deployment import Deployment
from tests.support.processes import finished

#: What is asked of each replica by turns, one each half second.
PATHS = ("/healthz", "/metrics", "/", "/readyz", "/metrics", "/status.json")
PAUSE = 0.5
#: Seconds between two commands, which cost more than everything else here: a Python each.
COMMAND_EVERY = 30.0
COMMANDS = (("status", "-o", "json"), ("verify", "--since", "90s"), ("runs",))


class Operator(threading.Thread):
    """Looks until it is told to stop; what did not answer well is counted by what was asked."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(daemon=True)
        self._deployment = deployment
        self._over = threading.Event()
        self.asked: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        #: What was last found wrong by a command.
        self.said = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Ask by turns."""
        turn, due = 0, time.monotonic() + COMMAND_EVERY
        while not self._over.wait(PAUSE):
            path = PATHS[turn % len(PATHS)]
            turn += 1
            for replica in self._deployment.replicas:
                self._count(path, replica.get(path).status_code == 200)
            if time.monotonic() >= due:
                due = time.monotonic() + COMMAND_EVERY
                self.command(*COMMANDS[(turn // len(PATHS)) % len(COMMANDS)])

    def command(self, *words: str) -> None:
        """Run a command of ours; what it printed is kept if it did not end well."""
        done = finished(("sb-worker", *words), self._deployment.env)
        self._count(f"sb-worker {words[0]}", done.returncode == 0)
        if done.returncode:
            self.said = f"sb-worker {' '.join(words)}: {done.stdout[:1000]}{done.stderr[:500]}"

    def _count(self, what: str, good: bool) -> None:
        self.asked[what] += 1
        self.bad[what] += not good
