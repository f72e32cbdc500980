"""SB_DISCOVER_TARGETS_JSON: three published shapes of a discover target, and the one job that all of them become.

Published were `{agent_id, provider, config, scope}`, `{name, cluster, provider_type, provider_config, scope}` and
`{cluster, provider, scope}`; any mixture is accepted, keys in any case as Go reads them. An agent decodes
`payload.scope` as a string and drops the job when it is anything else, so a scope that is an object is translated here
and never sent there.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from app.core import jsonb

#: What the api allows as a provider connection's type.
PROVIDERS = ("aws-sm", "vault", "gcp-sm", "azure-kv", "kubernetes")
_KEYS = frozenset(
    ("name", "agent_id", "cluster", "cluster_name", "provider", "provider_type", "config", "provider_config", "scope")
)
# Agents refuse a job with a credential; by then it would be in a table for all to read.
_CREDENTIAL_KEY = re.compile(r"(token|passw(or)?d|secretid|apikey|(access|secret|private)key(id)?|credentials?)$")
_CREDENTIAL_VALUE = re.compile(r"AKIA[0-9A-Z]{16}|hv[sb]\.[\w-]{20}|eyJ[\w-]+\.[\w-]+\.|-----BEGIN")
_SAFE_WORD = re.compile(r"[A-Za-z0-9_.@#-]{1,64}")


@dataclass(frozen=True)
class Target:
    """One thing to discover. `scope` is the prefix an agent understands, `raw_scope` what could not be one."""

    name: str
    provider: str
    config: Mapping[str, Any]
    agent_id: str = ""
    cluster: str = ""
    scope: str = ""
    labels: Mapping[str, str] | None = None
    raw_scope: Mapping[str, Any] | None = None

    def agent_scope(self, cluster: str) -> dict[str, str]:
        """Return every key by which some version of the api or of an agent finds its jobs."""
        keys = {"agent_id": self.agent_id, "cluster_name": cluster, "cluster": cluster}
        return {key: value for key, value in keys.items() if value}

    def payload(self, cluster: str) -> dict[str, Any]:
        """Return the job's payload, which an agent decodes."""
        required = {
            "target_name": self.name,
            "target_provider_type": self.provider,
            "target_provider_config": self.config,
        }
        optional = {
            "cluster_name": cluster,
            "scope": self.scope,
            "label_selector": self.labels,
            "target_scope": self.raw_scope,
        }
        return required | {key: value for key, value in optional.items() if value}

    @property
    def identity(self) -> str:
        """A text that equal targets have in common, whatever their names."""
        return json.dumps({**vars(self), "name": ""}, sort_keys=True)


@dataclass(frozen=True)
class Targets:
    """All targets, and warnings about them for an operator."""

    all: tuple[Target, ...]
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{len(self.all)} targets"


def parse(text: str) -> Targets:
    """Parse the variable's text. Raises ValueError with one line a problem, none of which shows a value."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("not JSON; accepted: a list of objects with provider and agent_id or cluster") from None
    if entries is None:  # as in Go, where it is an empty list
        return Targets((), ("null is taken as no targets; leave the variable unset",))
    if not isinstance(entries, list):
        raise ValueError("not a list; accepted: a JSON list of objects with provider and agent_id or cluster")  # noqa: TRY004
    problems: list[str] = []
    warnings: list[str] = []
    targets: dict[str, Target] = {}
    numbers: dict[str, int] = {}
    for number, entry in enumerate(entries, 1):
        reader = _Reader(entry)
        target = reader.target()
        problems += [f"target {number}: {problem}" for problem in reader.problems]
        warnings += [f"target {number}: {warning}" for warning in reader.warnings]
        if not reader.problems and targets.setdefault(target.identity, target) is not target:
            warnings.append(f"target {number}: the same as target {numbers[target.identity]}; both get one job")
        numbers.setdefault(target.identity, number)
    if problems:
        raise ValueError("\n".join(problems))
    return Targets(tuple(_distinct(targets.values())), tuple(warnings))


def _distinct(targets: Iterable[Target]) -> Iterator[Target]:
    """Yield the targets with distinct names, for logs: those that share one get a number."""
    seen: Counter[str] = Counter()
    for target in targets:
        seen[target.name] += 1
        count = seen[target.name]
        yield target if count == 1 else replace(target, name=f"{target.name}#{count}")


class _Reader:
    """Reads one entry and collects all that is wrong with it."""

    def __init__(self, entry: object) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.entry = {key.lower(): value for key, value in entry.items()} if isinstance(entry, dict) else {}
        if not isinstance(entry, dict):
            self.problems.append("not an object")
        elif unfit := jsonb.problems(entry):
            self.problems.append(f"holds what PostgreSQL cannot store: {', '.join(unfit)}")

    def target(self) -> Target:
        if self.problems:
            return Target("", "", {})
        for key in sorted(self.entry.keys() - _KEYS):
            self.warnings.append(f"key {key if _SAFE_WORD.fullmatch(key) else '(not shown)'} is not known, and ignored")
        provider = self._text("provider", "provider_type")
        if provider not in PROVIDERS:
            self.problems.append(f"provider must be one of {', '.join(PROVIDERS)}")
        cluster, agent_id = self._text("cluster", "cluster_name"), self._agent()
        if not cluster and not agent_id:
            self.problems.append("needs agent_id (a UUID) or cluster (a name), or both")
        target = Target(self._name(provider, cluster or agent_id), provider, self._config(), agent_id, cluster)
        return self._scoped(target)

    def _either(self, *keys: str) -> Any:
        """Return the value under one of several keys; it is a problem when they are given and differ."""
        values = [self.entry[key] for key in keys if self.entry.get(key) is not None]
        if len(values) > 1 and values[0] != values[1]:
            self.problems.append(f"{' and '.join(keys)} are both given and differ")
        return values[0] if values else None

    def _text(self, *keys: str) -> str:
        value = self._either(*keys)
        if value is not None and not isinstance(value, str):
            self.problems.append(f"{keys[0]} must be a string")
            return ""
        return (value or "").strip()

    def _agent(self) -> str:
        text = self._text("agent_id")
        try:
            return str(UUID(text)) if text else ""
        except ValueError:
            self.problems.append("agent_id must be a UUID")
            return ""

    def _name(self, provider: str, location: str) -> str:
        name = self._text("name") or f"{provider}@{location}"
        if _SAFE_WORD.fullmatch(name):
            return name
        if self.entry.get("name"):
            self.warnings.append("name is not 1 to 64 letters, digits and _ . @ # -, and the provider stands for it")
        return provider

    def _config(self) -> dict[str, Any]:
        value = self._either("config", "provider_config")
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problems.append("config must be an object")
            return {}
        if any(_is_credential(key, item) for key, item in _leaves(value)):
            self.problems.append("config seems to hold a credential; agents have their own, remove it")
        return value

    def _scoped(self, target: Target) -> Target:
        scope = self.entry.get("scope")
        if scope is None or isinstance(scope, str):
            return replace(target, scope=scope or "")
        if not isinstance(scope, dict):
            self.problems.append("scope must be a string or an object")
            return target
        prefix = next((scope[key] for key in ("prefix", "path", "scope") if isinstance(scope.get(key), str)), "")
        labels = next((scope[key] for key in ("labels", "label_selector") if _is_labels(scope.get(key))), None)
        if not prefix and not labels and scope:
            self.warnings.append("nothing in scope is a prefix or labels; the agent will discover everything")
        return replace(target, scope=prefix, labels=labels, raw_scope=scope or None)


def _is_labels(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(label, str) for label in value.values())


def _leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, key)
    else:
        yield key, value


def _is_credential(key: str, value: object) -> bool:
    normalized = re.sub(r"[^a-z0-9]", "", key.lower())
    by_key = bool(_CREDENTIAL_KEY.search(normalized)) and value not in (None, "", False)
    return by_key or (isinstance(value, str) and bool(_CREDENTIAL_VALUE.search(value)))
