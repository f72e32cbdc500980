"""Plays a round: deployment, load, faults, rest, and what the checks say."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from actors import SWEEPERS
from tests.chaos import checks, history
from tests.chaos.checks.violation import Violation
from tests.chaos.deployment import Deployment, Plan
from tests.chaos.ending.leftovers import Baseline, held
from tests.chaos.ending.settling import PATIENCE, settle
from tests.chaos.faults.fault import keep_striking
from tests.chaos.floors import too_few
from tests.chaos.history import History
from tests.chaos.reporting.versions import versions
from tests.chaos.rounds import Round
from tests.chaos.surroundings.commands import HUNG_COMMAND
from tests.chaos.surroundings.load import Load
from tests.chaos.watch import Watch
from tests.support.waiting import HUNG_PROCESS


@dataclass(frozen=True)
class Played:
    """A round that is over."""

    name: str
    seed: int
    seconds: float
    history: History
    effects: Mapping[str, int]
    violations: Sequence[Violation]
    #: Kinds of faults that had too few effects, as sentences.
    too_few: Sequence[str]
    #: What the round does, as the table says it.
    text: str = ""
    #: What it was played on, by name.
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether nothing was found, and enough was done to find something."""
        return not self.violations and not self.too_few


def play(  # noqa: PLR0913 - what a round is played with
    made: Round,
    *,
    seed: int,
    seconds: float,
    plan: Callable[[Plan], Plan] = lambda plan: plan,
    timed: bool = False,
    progress: Callable[[str], None] = lambda _line: None,
    enough: Mapping[str, int] | None = None,
) -> Played:
    """Play it for so many seconds, and a while before and after; `plan` may change what the deployment is made with.

    With `timed` it is also judged by how soon sweepers went on. With `enough` it goes on until so many effects were
    seen: where a machine is slow, for longer.
    """
    cadences = {sweeper.name: made.intervals for sweeper in SWEEPERS}
    with tempfile.TemporaryDirectory(prefix="sb-chaos-") as name, ExitStack() as stack:
        os.chmod(name, 0o755)  # noqa: PTH101 - PostgreSQL's user reads a preloaded library
        directory = Path(name)
        deployment = stack.enter_context(Deployment(directory, plan(made.plan(directory))))
        baseline = Baseline()
        over = threading.Event()
        threads = [
            threading.Thread(target=keep_striking, args=(strike, deployment, seed, over), name=strike.name)
            for strike in made.strikes
        ]
        with Watch(deployment.postgres.url()) as watch:
            with Load(deployment.postgres.url(), seed):
                for thread in threads:
                    thread.start()
                try:
                    _last(deployment, seconds, progress, enough or {}, baseline)
                finally:
                    over.set()
                    for thread in threads:
                        thread.join()
                calm = time.monotonic()
                patience = PATIENCE if timed else HUNG_PROCESS
                _go_on(deployment, watch, baseline, names=set(cadences), until=calm + patience)
            watch.rest()
            leftovers = settle(deployment, baseline.held, timed=timed)
        found = history.read(deployment, watch, cadences, leftovers=leftovers, lease=made.lease, calm=calm)
        effects = dict(deployment.log.effects)
        played_on = versions(deployment)
    missing = [*deployment.log.broken, *too_few(made.floors, effects, seconds)]
    violations = checks.run(found, timed=timed)
    return Played(made.name, seed, seconds, found, effects, violations, missing, made.text, played_on)


def _last(
    deployment: Deployment,
    seconds: float,
    progress: Callable[[str], None],
    enough: Mapping[str, int],
    baseline: Baseline,
) -> None:
    began = told = time.monotonic()
    effects = deployment.log.effects
    while (now := time.monotonic()) < began + seconds or (
        now < began + HUNG_COMMAND and any(effects[kind] < times for kind, times in enough.items())
    ):
        time.sleep(0.2)
        baseline.look(deployment)
        if now - told >= 5:
            told = now
            done = ", ".join(f"{kind} {times}" for kind, times in sorted(deployment.log.effects.items()))
            progress(f"{now - began:.0f} of {seconds:.0f} s; {done or 'no faults'}")


def _go_on(deployment: Deployment, watch: Watch, baseline: Baseline, *, names: set[str], until: float) -> None:
    """Wait, all faults being over, until each sweeper has succeeded once more, and some processes can be compared.

    If that does not come about, checks say so.
    """
    calm = time.monotonic()
    while time.monotonic() < until:
        baseline.look(deployment)
        since = {success.name for success in list(watch.successes) if success.at > calm}
        if names <= since and baseline.held.keys() & held(deployment).keys():
            return
        time.sleep(0.1)
