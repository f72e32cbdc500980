"""Arguments of the measurements: a few numbers, each with a default."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any


def numbers(purpose: str | None, **defaults: float) -> list[Any]:
    """Return the numbers of the command line in their order, of the types of their defaults, which may be left out."""
    parser = ArgumentParser(description=purpose)
    for name, default in defaults.items():
        parser.add_argument(name, nargs="?", type=type(default), default=default, help=f"default: {default}")
    return list(vars(parser.parse_args()).values())
