"""Results: what each round has found, on which machine, with which versions, as one JSON file a measurement."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from app.demo.binaries import postgres_programs, redis_program
from bench.measurement import Figure, Round

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
#: Two sets of results that the table shows side by side.
BEFORE, NOW = "before", "now"
_PACKAGES = ("dramatiq", "periodiq", "redis", "psycopg", "httpx", "httpcore", "aiohttp", "httpx-aiohttp")


class Spread(NamedTuple):
    """The middle of some values, and how far they reach."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Spread | None:
        """Return the spread of these values, None when there are none."""
        return cls(statistics.median(values), min(values), max(values)) if values else None


class Result(NamedTuple):
    """The rounds of one measurement, and where they were taken."""

    name: str
    size: str
    taken: str
    revision: str
    machine: dict[str, Any]
    versions: dict[str, str]
    rounds: list[Round]

    def ours(self, figure: str) -> Spread | None:
        """Return our values."""
        return Spread.over([found.ours[figure] for found in self.rounds if figure in found.ours])

    def baseline(self, figure: str) -> Spread | None:
        """Return those of the baseline."""
        return Spread.over([found.baseline[figure] for found in self.rounds if figure in found.baseline])

    def ratio(self, figure: str) -> Spread | None:
        """Return ours divided by the baseline, round by round."""
        both = [found for found in self.rounds if figure in found.ours and found.baseline.get(figure)]
        return Spread.over([found.ours[figure] / found.baseline[figure] for found in both])

    def judged(self, figure: Figure) -> Spread | None:
        """Return what the figure's goal is about."""
        return self.ratio(figure.name) if figure.ratio else self.ours(figure.name)


def save(result: Result, directory: Path) -> None:
    """Write a result into its file."""
    directory.mkdir(parents=True, exist_ok=True)
    document = {**result._asdict(), "rounds": [_rounded(found) for found in result.rounds]}
    (directory / f"{result.name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def load(directory: Path, names: Iterable[str]) -> dict[str, Result]:
    """Return those results that there are."""
    found = {}
    for name in names:
        path = directory / f"{name}.json"
        if path.exists():
            document = json.loads(path.read_text(encoding="utf-8"))
            found[name] = Result(**{**document, "rounds": [Round(**pair) for pair in document["rounds"]]})
    return found


def _rounded(found: Round) -> dict[str, dict[str, float]]:
    return {arm: {name: float(f"{value:.4g}") for name, value in got.items()} for arm, got in found._asdict().items()}


def now() -> str:
    """Return the time for a result, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def revision() -> str:
    """Return the commit that is measured, with a mark when files differ from it."""
    if not (ROOT / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def machine() -> dict[str, Any]:
    """Return what this machine is, and how busy it was before the measurement."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    found = {"python": platform.python_version()}
    for name, program in (("postgresql", postgres_programs() / "postgres"), ("redis-server", redis_program())):
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        found[name] = " ".join(done.stdout.split()[2:4]).removeprefix("v=").split()[0]
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
