"""What `python -c code ...` does, as a program that can be forked."""

from __future__ import annotations

import sys


def main() -> None:
    _, _, code, *arguments = sys.argv
    sys.argv[:] = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
