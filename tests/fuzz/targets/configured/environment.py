"""Any text in any variables at once: settings, or lines that say what is wrong, each of one, without its value."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

from actors import SWEEPERS
from app.core import config
from app.core.errors import ConfigError
from app.worker.loading import groups, load
from sinks import SINKS
from tests.fuzz.target import target
from tests.fuzz.texts import CANARY, environment, for_environment, near, texts

GROUPS = groups(SWEEPERS, SINKS)
VARIABLES = config.variables(*GROUPS)
NAMES = sorted({name for variable in VARIABLES for name in variable.names})
SECRETS = {name for variable in VARIABLES if variable.secret for name in variable.names}
BASE = {"DATABASE_URL": "postgres://127.0.0.1/x", "REDIS_URL": "redis://127.0.0.1"}
#: Good values of some kind, that others are made of.
GOOD = (
    *(
        "true",
        "1m",
        "10",
        "127.0.0.1:8091",
        "10.0.0.0/8,::1/128",
        "wraps-expired,-agents-stale",
        "warn",
        "prod",
        "all",
        "off",
    ),
    *("https://hooks.example.org/a?b=c", "a@example.org, b@example.org", "starttls", "0.5", "x=y,z=1", "eu-central-1"),
    *("vault-transit", "aws-kms", "local", "unix:///run/x.sock", '{"X-A": "b"}', "none", "otlp", "*", "http://u:p@h:1"),
    *(
        '[{"agent_id":"00000000-0000-0000-0000-000000000000","provider":"vault"}]',
        "whsec_AAAA",
        "tgram://1:a/2",
        "traceidratio",
    ),
    *("cluster:a,b:c", "/etc/hosts", "/", "3x", "20%", "1000"),
)
#: What switches on what is otherwise not looked at.
ON = {
    "SB_WORKER_GITOPS_ENABLED": "true",
    "SB_KMS_BACKEND": "vault-transit",
    "SB_NOTIFICATION_WEBHOOK_URL": "https://hooks.example.org/x",
    "SB_NOTIFICATION_EMAIL_HOST": "mail.example.org",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
    "AWS_REGION": "eu-central-1",
    "SB_ENV": "dev",
}


class Given(NamedTuple):
    """Variables, and what stands in the files of those that name one."""

    variables: Mapping[str, str]
    files: Mapping[str, bytes]


_TEXTS = for_environment(texts | near(*GOOD))
_SET = st.dictionaries(st.sampled_from(NAMES), _TEXTS, max_size=5)
INPUTS = st.builds(
    lambda on, some, files: Given({name: ON[name] for name in on} | some, files),
    st.sets(st.sampled_from(sorted(ON))),
    _SET,
    st.dictionaries(
        st.sampled_from(sorted(SECRETS)),
        st.binary(max_size=40) | near(*GOOD).map(lambda text: text.encode("utf-8", "replace")),
        max_size=2,
    ),
)


@target("environment", INPUTS, cases=150)
def environment_(given: Given) -> None:
    with ExitStack() as stack:
        variables = {**BASE, **given.variables}
        for name, content in given.files.items():
            file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "value"
            file.write_bytes(content)
            variables[f"{name}_FILE"] = str(file)
        stack.enter_context(environment(variables))
        told: list[str] = []
        try:
            told += load(SWEEPERS, SINKS).warnings
        except ConfigError as error:
            assert error.problems
            told += error.problems
        for line in told:
            _check(line)
        for row in config.rows(*GROUPS):
            if row.name in SECRETS and row.source != "default":
                assert row.value == "set", row.name
        config.unknown(*GROUPS)


def _check(line: str) -> None:
    assert line.splitlines() == [line], line
    assert line.isprintable(), line
    assert CANARY not in line, line
    assert "Error" not in line, line
    subject = line.partition(":")[0]
    assert all(
        name.removesuffix("_FILE") in NAMES or name in NAMES or name.isupper() for name in subject.split(", ")
    ), line
