"""Starts a program with a defect: `python -m tests.chaos.variants DEFECT dramatiq ...`; see the package."""

from __future__ import annotations

import multiprocessing
import runpy
import sys

from tests.chaos.variants.defects import DEFECTS


def main() -> None:
    """Make the defect and become the program; its children are forked, so that they have it as well."""
    name, *sys.argv = sys.argv[1:]
    multiprocessing.set_start_method("fork")
    DEFECTS[name].make()
    runpy.run_module("dramatiq", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    main()
