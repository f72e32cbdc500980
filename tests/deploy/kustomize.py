"""Kustomizations, rendered: as much of it as ours use, and an error for whatever else one says.

Where `kubectl` is installed a test compares this with what it renders.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

_KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "patches", "images"}


def render(folder: Path) -> list[Object]:
    """Return the objects of a kustomization."""
    return _applied(folder, [])


def read(path: Path) -> list[Object]:
    """Return the documents of a file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def containers(pod: Object) -> Iterator[Object]:
    """Yield all containers of a pod's spec, those that come first included."""
    yield from pod.get("initContainers", [])
    yield from pod["containers"]


def pods(folder: Path) -> dict[str, Object]:
    """Return the spec of the pods of each of its Deployments, by their component."""
    return {
        one["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]: one["spec"]["template"]["spec"]
        for one in render(folder)
        if one["kind"] == "Deployment"
    }


def _applied(folder: Path, beneath: list[Object]) -> list[Object]:
    """Return what a kustomization makes of the objects beneath it, which only a component has."""
    (said,) = read(folder / "kustomization.yaml")
    assert said.keys() <= _KNOWN, said.keys() - _KNOWN
    objects = copy.deepcopy(beneath)
    for name in said.get("resources", ()):
        path = folder / name
        objects += render(path) if path.is_dir() else read(path)
    for name in said.get("components", ()):
        objects = _applied(folder / name, objects)
    for patch in said.get("patches", ()):
        _patch(objects, patch["target"], *read(folder / patch["path"]))
    for one in objects:
        if "namespace" in said:
            one["metadata"]["namespace"] = said["namespace"]
        if one["kind"] == "Deployment":
            _name_images(one["spec"]["template"]["spec"], said.get("images", ()))
    return objects


def _patch(objects: list[Object], target: Object, change: Object) -> None:
    assert target.keys() == {"kind"}
    change.pop("metadata")  # a target chooses, not the name
    for one in objects:
        if one["kind"] == target["kind"]:
            _merge(one, change)


def _name_images(pod: Object, images: Iterable[Object]) -> None:
    for container in containers(pod):
        for image in images:
            if container.get("image") == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"


def _merge(into: Object, change: Object) -> None:
    """Merge strategically: objects by their keys, lists of named things by name, other lists replaced."""
    for key, value in change.items():
        before = into.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            _merge(before, value)
        elif isinstance(before, list) and isinstance(value, list) and all("name" in one for one in value):
            for one in value:
                same = [other for other in before if other["name"] == one["name"]]
                if same:
                    _merge(same[0], one)
                else:
                    before.append(copy.deepcopy(one))
        else:
            into[key] = copy.deepcopy(value)
