"""Where `sb-worker` begins: with the one command that may be process 1 of a container ready for a stop."""

from __future__ import annotations

import sys

from app.supervisor import stops


def main() -> None:
    """Run the command. From here on a stop of `sb-worker run` waits for the runner, which ends with status 0."""
    if sys.argv[1:2] == ["run"]:
        stops.hold()
    from app.cli.main import main as command  # noqa: PLC0415 - it takes a second, in which a stop may come

    command()
