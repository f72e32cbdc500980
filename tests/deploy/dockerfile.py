"""A Dockerfile's instructions, read: as many of them as ours uses, and an error for any other."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_KNOWN = {*("FROM", "ARG", "LABEL", "COPY", "RUN", "WORKDIR", "ENV", "USER", "EXPOSE", "HEALTHCHECK"), "ENTRYPOINT"}
_KNOWN |= {"CMD"}


@dataclass(frozen=True)
class Instruction:
    """One instruction: its word, its options (`--from=build`), and the rest."""

    word: str
    options: dict[str, str]
    text: str

    @property
    def words(self) -> list[str]:
        """The rest in the form of an array, or split as a shell would."""
        return json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)

    @property
    def pairs(self) -> dict[str, str]:
        """The rest as name=value pairs."""
        split = (word.partition("=") for word in self.words)
        return {name: value for name, _, value in split}


@dataclass
class Stage:
    """What stands between one FROM and the next."""

    name: str
    source: str
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, word: str) -> Instruction:
        """Return the instruction that counts where each replaces the one before."""
        return [one for one in self.instructions if one.word == word][-1]

    def merged(self, word: str) -> dict[str, str]:
        """Return all pairs of an instruction that adds to the ones before."""
        return {k: v for one in self.instructions if one.word == word for k, v in one.pairs.items()}


def stages(text: str) -> list[Stage]:
    """Read a Dockerfile."""
    found: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.word == "FROM":
            source, _, name = instruction.text.partition(" AS ")
            found.append(Stage(name, source))
        else:
            found[-1].instructions.append(instruction)
    return found


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        word, _, rest = line.partition(" ")
        if word not in _KNOWN:
            raise ValueError(f"{word} is an instruction that this reader does not know")
        options = {}
        while match := re.match(r"\s*--([\w-]+)=(\S+)\s+", rest):
            options[match[1]] = match[2]
            rest = rest[match.end() :]
        yield Instruction(word, options, rest.strip())


class Context:
    """The folder that is built from, without what .dockerignore leaves out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
        self._rules = [
            (not line.startswith("!"), re.compile(_as_expression(line.removeprefix("!"))))
            for line in lines
            if line.strip() and not line.startswith("#")
        ]

    def files(self, source: str) -> Iterator[Path]:
        """Yield the files below `source`, or that file, which are sent to a builder; by their paths in the context."""
        path = self.root / source
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            relative = file.relative_to(self.root)
            if file.is_file() and not self._ignored(relative.as_posix()):
                yield relative

    def _ignored(self, path: str) -> bool:
        """Return whether the last rule that matches a path, or a folder above it, leaves it out."""
        verdicts = [leave_out for leave_out, rule in self._rules if rule.fullmatch(path)]
        return bool(verdicts) and verdicts[-1]


def _as_expression(pattern: str) -> str:
    parts = {"**/": "(?:.*/)?", "*": "[^/]*"}
    inner = "".join(parts.get(part) or re.escape(part) for part in re.split(r"(\*\*/|\*)", pattern.strip("/")))
    return f"{inner}(?:/.*)?"
