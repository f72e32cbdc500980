"""An image built without an engine: each instruction of a Dockerfile run in overlays of this machine's own files.

The base image is stood in for by this machine: its files as `/`, and the installation of the Python that runs the tests
as `/usr/local`, where the base image has its own. So what is shown is what our instructions do. What is not shown: what
the base image lacks, and the image's size.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from string import Template

import pytest

from tests.deploy.dockerfile import Context, Instruction, Stage, stages
from tests.deploy.namespaces import MountNamespace

#: Where the base image has something that is not this machine's `/`.
_PYTHON = "usr/local"
_PASSED_ON = ("PIP_", "SSL_CERT", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")


@dataclass(frozen=True)
class Built:
    """A stage that was built: its mounted root, what lies beneath it, and what it says of itself."""

    stage: Stage
    root: Path
    layers: Mapping[str, list[Path]]


def build(space: MountNamespace, context: Context, dockerfile: str) -> Built:
    """Build all stages and return the last one."""
    prefix = Path(sys.base_prefix)
    if prefix == Path("/usr") or not list(prefix.glob("lib/python3*/ensurepip")):
        pytest.skip("needs a Python in a folder of its own, with ensurepip, to stand in for the base image's")
    built: dict[str, Built] = {}
    for stage in stages(dockerfile):
        built[stage.name] = _Builder(space, context, built, space.place / f"{next(_NUMBERS)}").build(stage)
    return built[""]  # the last one has no name


_NUMBERS = count()


class _Builder:
    """One stage."""

    def __init__(self, space: MountNamespace, context: Context, built: Mapping[str, Built], place: Path) -> None:
        self._space, self._context, self._built, self._place = space, context, built, place
        self.root = place / "root"
        self._directory = Path("/")
        self._env = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": os.environ.get("HOME", "/")}
        self._env |= {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}

    def build(self, stage: Stage) -> Built:
        """Run its instructions."""
        lowers = self._beneath(stage)
        layers = {}
        for folder, below in lowers.items():
            upper = self._space.overlay(below, self._place / (folder.replace("/", "-") or "top"), self.root / folder)
            layers[folder] = [upper, *below]
        for mount in ("proc", "dev"):
            self._space.run(["mount", "--rbind", f"/{mount}", self.root / mount])
        self._space.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", self.root / "tmp"])
        if stage.source.startswith("python:"):  # as that image does, for a Python with a library of its own
            self._space.run(["chroot", self.root, "ldconfig"], self._env)
        for instruction in stage.instructions:
            self._do(instruction)
        return Built(stage, self.root, layers)

    def _beneath(self, stage: Stage) -> Mapping[str, list[Path]]:
        if stage.source in self._built:
            return self._built[stage.source].layers
        if stage.source == "scratch":
            # What is copied onto nothing is a layer beneath; it would be all of this machine's files.
            (whole,) = [one for one in stage.instructions if one.word == "COPY" and one.words == ["/", "/"]]
            return self._built[whole.options["from"]].layers
        assert stage.source.startswith("python:"), stage.source
        return {"": [Path("/")], _PYTHON: [Path(sys.base_prefix)]}

    def _do(self, instruction: Instruction) -> None:
        match instruction.word:
            case "RUN":
                command = f"cd {self._directory} && {instruction.text}"
                self._space.run(["chroot", str(self.root), "sh", "-c", command], self._env)
            case "WORKDIR":
                self._directory = Path(instruction.text)
                self._space.run(["mkdir", "-p", self.root / self._directory.relative_to("/")])
            case "ARG":
                self._env |= {name: value for name, value in instruction.pairs.items() if value}
            case "COPY" if instruction.words != ["/", "/"]:
                self._copy(instruction)
            case _:
                pass  # it says something of the image, and does nothing to its files

    def _copy(self, instruction: Instruction) -> None:
        *sources, target = (Template(word).safe_substitute(self._env) for word in instruction.words)
        place = self.root / (self._directory / target).relative_to("/")
        for source in sources:
            if origin := instruction.options.get("from"):
                self._space.run(["cp", "-a", self._built[origin].root / source.lstrip("/"), place])
                continue
            for file in self._context.files(source):
                within = file.relative_to(source) if (self._context.root / source).is_dir() else Path(file.name)
                inside = self._space.seen(place) / within
                inside.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._context.root / file, inside)
                shutil.copymode(self._context.root / file, inside)
