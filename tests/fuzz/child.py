"""One target under atheris: `python -m tests.fuzz.child NAME ... [libFuzzer's options]`; it never returns.

Only the program is instrumented, so its coverage is what the fuzzer follows. The first byte of an input says how the
others are meant: as the input itself, or as the choices of Hypothesis's strategy.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import Any

from hypothesis import given, settings

from tests.fuzz.target import UNHURRIED, Holds, Target

#: Names of packages whose coverage is followed.
PROGRAM = ["app", "actors", "sinks"]
#: How the line begins that shows an input that broke something, and how much of it is shown.
SHOWN = "input: "
_MOST_SHOWN = 4000


def of_bytes(target: Target[Any], holds: Holds[Any]) -> Callable[[bytes], None]:
    """Return what tries the input that some bytes stand for."""

    @settings(database=None, deadline=None, suppress_health_check=UNHURRIED)
    @given(target.inputs)
    def structured(value: Any) -> None:
        _tried(holds, value)

    fuzz_one: Callable[[bytes], object] = structured.hypothesis.fuzz_one_input  # type: ignore[attr-defined]

    def one(data: bytes) -> None:
        if target.raw is not None and data[:1] and data[0] % 2 == 0:
            _tried(holds, target.raw(data[1:]))
        else:
            fuzz_one(data[1:])

    return one


def _tried(holds: Holds[Any], value: Any) -> None:
    try:
        holds(value)
    except BaseException:
        print(f"{SHOWN}{repr(value)[:_MOST_SHOWN]}", file=sys.stderr, flush=True)
        raise


def found(name: str) -> Target[Any]:
    """Return the target of this name."""
    targets = import_module("tests.fuzz.targets").TARGETS
    return next(target for target in targets if target.name == name)


def _opened(stack: ExitStack, name: str) -> Callable[[bytes], None]:
    """Import a target, and with it all of the program that it is about, and have it ready."""
    from tests.fuzz.servers import OwnServers  # noqa: PLC0415 - it imports the program as well

    target = found(name)
    return of_bytes(target, stack.enter_context(target.opened(stack.enter_context(OwnServers()))))


def main() -> None:
    """Fuzz, or try one input that is given in base64."""
    name, task, *options = sys.argv[1:]
    with ExitStack() as stack:
        if task.startswith("--input="):
            _opened(stack, name)(base64.b64decode(task.removeprefix("--input=")))
            return
        atheris: Any = import_module("atheris")  # which is not there for every Python
        with atheris.instrument_imports(include=PROGRAM):
            one = _opened(stack, name)
        atheris.Setup([sys.argv[0], task, *options], one)
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - what the program prints is not the fuzzer's
        atheris.Fuzz()


if __name__ == "__main__":
    main()
