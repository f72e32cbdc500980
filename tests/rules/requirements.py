"""What requirements/*.txt lock, and what pyproject.toml asks for, for the Python that runs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.processes import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: The extras that each lock has, as `make lock` resolves them.
EXTRAS = {
    "run": (),
    "otel": ("otel",),
    "test": ("otel", "test", "demo", "build"),
    "check": ("otel", "test", "demo", "build", "check"),
    "fuzz": ("otel", "test", "demo", "build", "fuzz"),
}
FILES = sorted((ROOT / "requirements").glob("*.txt"))


class Locked(NamedTuple):
    """One entry: a requirement, and the hashes that its files may have."""

    requirement: Requirement
    hashes: tuple[str, ...]


def entries(text: str) -> Iterator[str]:
    """Yield the lines of a lock, those that go on in the next one as one."""
    yield from (line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip())


def read(line: str) -> Locked:
    """Read an entry. Raises packaging's InvalidRequirement for what is no requirement, such as an option."""
    words, *hashes = re.split(r"\s*--hash=", line)
    return Locked(Requirement(words), tuple(hashes))


def locked(name: str) -> dict[str, str]:
    """Return the versions that a lock has for this Python, by name."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    wanted = [read(line).requirement for line in entries(text)]
    here = [one for one in wanted if one.marker is None or one.marker.evaluate()]
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in here}


def asked_for(extras: Iterable[str]) -> list[Requirement]:
    """Return what pyproject.toml asks for with these extras."""
    texts = [*PROJECT["dependencies"]]
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


def closure(wanted: Iterable[Requirement]) -> dict[str, str | None]:
    """Return what has to be installed for these on this Python: versions by name, None for what is not here.

    Nothing is known of what a distribution asks for that is not here.
    """
    found: dict[str, str | None] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    open_ = [(one, frozenset[str]()) for one in wanted]
    while open_:
        one, of = open_.pop()
        name, extras = canonicalize_name(one.name), frozenset(one.extras)
        applies = one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *of))
        if not applies or (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            here = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            found[name] = None
            continue
        found[name] = here.version
        open_ += [(Requirement(text), extras) for text in here.requires or ()]
    return found
