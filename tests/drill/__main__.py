"""`python -m tests.drill` drills every incident and writes docs/drill.md: what an operator types, and sees."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.drill.deployment import Deployment
from tests.drill.drilling import Record, drill
from tests.drill.incidents import INCIDENTS
from tests.support.processes import ROOT

PAGE = ROOT / "docs" / "drill.md"
INTRODUCTION = """# A drill of twelve incidents

Each of these was made to happen to a real deployment: a worker, a notifier and a scheduler on their own PostgreSQL and
Redis, with cadences of two seconds. The one command that finds it is always `sb-worker status`; its screen has
what mends it. Nothing here is written by hand: `python -m tests.drill` drills anew and writes this page, and the tests
drill each incident as well.
"""


def main() -> int:
    """Drill, and write the page."""
    with tempfile.TemporaryDirectory() as directory, Deployment(Path(directory)) as deployment:
        records = []
        for number, incident in enumerate(INCIDENTS, 1):
            print(f"{number}/{len(INCIDENTS)} {incident.title}", flush=True)
            records.append(drill(deployment, incident))
    PAGE.write_text("\n".join(_page(records)))
    print(f"{PAGE.relative_to(ROOT)} is written")
    return 0


def _page(records: Iterable[Record]) -> Iterator[str]:
    yield INTRODUCTION
    for number, record in enumerate(records, 1):
        yield f"## {number}. {record.incident.title}\n\n{record.incident.happens}\n"
        yield f"```console\n$ sb-worker status\n{_trimmed(record.screen)}\n```\n"
        yield "What mends it:\n"
        yield f"```sh\n{record.mended}\n```\n"


def _trimmed(screen: str) -> str:
    return "\n".join(line.rstrip() for line in screen.strip("\n").splitlines())


if __name__ == "__main__":
    sys.exit(main())
