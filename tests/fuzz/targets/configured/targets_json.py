"""SB_DISCOVER_TARGETS_JSON: targets whose jobs PostgreSQL and an agent can take, or lines without a value."""

from __future__ import annotations

import json

from app.core import jsonb
from app.discovery import targets as discovery
from tests.fuzz.target import target
from tests.fuzz.texts import CANARY, spoiled, texts

AGENT = "0b5c7c0e-1111-4222-8333-444455556666"
SAMPLE = [
    {"agent_id": AGENT, "provider": "vault", "config": {"address": "https://v", "mount": "kv"}, "scope": "apps/"},
    {"name": "eu", "cluster": "c", "provider_type": "aws-sm", "provider_config": {}, "scope": {"labels": {"a": "b"}}},
    {"cluster_name": "c", "provider": "kubernetes", "scope": {"prefix": "x", "password": CANARY}},
]


@target(
    "discover-targets",
    spoiled(SAMPLE).map(json.dumps) | texts,
    raw=lambda data: data.decode("utf-8", "surrogateescape"),
    seeds=(json.dumps(SAMPLE).encode(),),
    cases=300,
)
def discover_targets(text: str) -> None:
    try:
        found = discovery.parse(text)
    except ValueError as error:
        assert CANARY not in str(error)
        assert all(line.isprintable() for line in str(error).split("\n"))
        return
    assert not [warning for warning in found.warnings if CANARY in warning or not warning.isprintable()]
    names = [one.name for one in found.all]
    assert len(set(names)) == len(names)
    for one in found.all:
        assert one.provider in discovery.PROVIDERS
        assert one.agent_id or one.cluster
        payload = one.payload(one.cluster)
        assert jsonb.problems(payload) == []
        assert json.loads(json.dumps(payload, allow_nan=False)) == payload
        assert isinstance(payload.get("scope", ""), str)
        assert all(isinstance(value, str) for value in one.agent_scope("x").values())
