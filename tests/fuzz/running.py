"""Runs one target under atheris in a process of its own, within bounds, and reads what that says of itself."""

from __future__ import annotations

import base64
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.fuzz.target import Target

#: What one input may take, seconds, and a process, MiB: more is a find.
HANG_SECONDS, MOST_MIB = 30, 1024
#: Seconds for a process beyond those that it is told to fuzz for: it imports the program, instrumented, and may start
#: servers, on a machine that may be busy.
_AROUND = 600
_PROGRESS_SECONDS = 10.0
#: Bytes of one input at most, and how many random ones are begun with: choices for a strategy need some hundred bytes.
_MOST_BYTES, _RANDOM_SEEDS, _MOST_CHOICES = 4096, 32, 1024
_STATUS = re.compile(r"#(\d+)\s.*?cov: (\d+) ft: (\d+).*?exec/s: (\d+) rss: (\d+)Mb")
_STAT = re.compile(r"stat::(\w+):\s+(\d+)")
#: What libFuzzer ends with, by its documentation.
_ENDS = {70: "hung", 71: "took too much memory", 77: "crashed"}
_MOST_LINES = 60


@dataclass
class Outcome:
    """What became of one target."""

    name: str
    executions: int = 0
    rate: int = 0
    coverage: int = 0
    features: int = 0
    peak_mib: int = 0
    #: How it broke; empty when it held.
    crashed: str = ""
    lines: list[str] = field(default_factory=list)

    def read(self, line: str) -> None:
        """Take over what a line of libFuzzer's says; keep any other for the case of a find."""
        if match := _STATUS.match(line):
            self.executions, self.coverage, self.features, self.rate, self.peak_mib = map(int, match.groups())
        elif match := _STAT.match(line):
            number = int(match[2])
            match match[1]:
                case "number_of_executed_units":
                    self.executions = number
                case "average_exec_per_sec":
                    self.rate = number
                case "peak_rss_mb":
                    self.peak_mib = number
        elif not line.startswith(("INFO:", "#", "Done ")):
            self.lines.append(line.rstrip())

    @property
    def progress(self) -> str:
        """One line."""
        return (
            f"{self.name}: {self.executions:,} executions, {self.rate:,}/s, coverage {self.coverage:,}, "
            f"features {self.features:,}, {self.peak_mib} MiB"
        )


def run(target: Target[Any], seconds: int, seed: int, one: str | None) -> Outcome:
    """Fuzz a target for so long and print what comes of it; or try `one` input, in base64."""
    outcome = Outcome(target.name)
    with tempfile.TemporaryDirectory() as scratch:
        finds = Path(scratch) / "finds"
        corpus = Path(scratch) / "corpus"
        for folder in (finds, corpus):
            folder.mkdir()
        _seed(corpus, target, seed)
        options = [
            *(f"-max_total_time={seconds}", f"-seed={seed}", f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={MOST_MIB}"),
            *(f"-max_len={_MOST_BYTES}", "-len_control=0", "-print_final_stats=1", f"-artifact_prefix={finds}/"),
            str(corpus),
        ]
        if one is not None:
            options = [f"--input={one}"]
        command = [sys.executable, "-m", "tests.fuzz.child", target.name, *options]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, errors="replace"
        ) as child:
            assert child.stderr is not None
            limit = threading.Timer(seconds + _AROUND, child.kill)
            limit.start()
            try:
                _follow(child.stderr, outcome, quiet=one is not None)
                status = child.wait()
            finally:
                limit.cancel()
                child.kill()
        if status:
            outcome.crashed = _ENDS.get(status, f"ended with status {status}")
            _tell(outcome, finds, one)
        elif one is not None:
            print(f"{target.name}: the input holds")
    return outcome


def _seed(corpus: Path, target: Target[Any], seed: int) -> None:
    """Write what the fuzzer begins with: good inputs, and choices by chance for a strategy."""
    chance = random.Random(seed)
    for number, content in enumerate(target.seeds):
        (corpus / f"good{number}").write_bytes(b"\x00" + content)
    for number in range(_RANDOM_SEEDS):
        (corpus / f"chance{number}").write_bytes(b"\x01" + chance.randbytes(chance.randint(50, _MOST_CHOICES)))


def _follow(lines: IO[str], outcome: Outcome, *, quiet: bool) -> None:
    told = time.monotonic()
    for line in lines:
        outcome.read(line)
        if not quiet and time.monotonic() - told >= _PROGRESS_SECONDS:
            told = time.monotonic()
            print(outcome.progress, flush=True)
    if not quiet:
        print(outcome.progress, flush=True)


def _tell(outcome: Outcome, finds: Path, one: str | None) -> None:
    print(f"{outcome.name} {outcome.crashed}:", *outcome.lines[-_MOST_LINES:], sep="\n  ", flush=True)
    for find in sorted(finds.iterdir()) if one is None else ():
        text = base64.b64encode(find.read_bytes()).decode()
        print(f"try it again: python -m tests.fuzz {outcome.name} --input {text}", flush=True)
