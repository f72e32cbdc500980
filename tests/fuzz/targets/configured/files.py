"""Files of variables: profiles, certificates, keys. Read, or refused without a line of them; never waited for.

Each input is in a file, and in a pipe that somebody keeps open.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

from app.core import http
from app.core.errors import UnwrapFailed
from app.kms.aws_config import AwsConfig
from app.kms.aws_sources import choose
from app.kms.checks import pem
from app.storage.postgres_dsn import parse_database_url
from tests.fuzz.target import Holds, Servers, Target
from tests.fuzz.texts import CANARY, near, texts

_PROFILE = f"""\
[default]
aws_access_key_id = A
aws_secret_access_key = {CANARY}
[profile x]
role_arn = arn:aws:iam::1:role/x
source_profile = y
duration_seconds = 3600
services = s
[profile y]
source_profile = x
role_arn = z
web_identity_token_file = /f
[services s]
kms =
  endpoint_url = http://127.0.0.1:1
# {CANARY}
"""
#: Where PostgreSQL's parameters name it.
_SQL = (
    *("sslmode=verify-full sslrootcert={}", "sslcert={0} sslkey={0}", "sslcrl={}", "sslcrldir={}", "passfile={}"),
    "service=x servicefile={}",
)
#: Bytes that a pipe takes at once.
_PIPE = 512
_PEM = f"-----BEGIN CERTIFICATE-----\n{CANARY}\n-----END CERTIFICATE-----\n"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@contextmanager
def _opened(_servers: Servers) -> Iterator[Holds[bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        file, pipe = Path(folder) / "file", Path(folder) / "pipe"
        os.mkfifo(pipe)
        kept = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)

        def holds(content: bytes) -> None:
            file.write_bytes(content)
            read(file)
            for sql in _SQL:
                os.write(kept, content[:_PIPE])
                _refused(sql, pipe)
            read(pipe)

        def read(file: Path) -> None:
            for sql in _SQL:
                _refused(sql, file)
            for profile in ("", "x", "y"):
                config = AwsConfig({"AWS_CONFIG_FILE": str(file), "AWS_PROFILE": profile}, "eu-central-1")
                for ask in (
                    choose,
                    lambda one: one.retries,
                    lambda one: one.endpoint("kms"),
                    lambda one: one.endpoint("sts"),
                ):
                    try:
                        ask(config)
                    except UnwrapFailed as error:
                        assert CANARY not in str(error)
                        assert str(error).isprintable()
            try:
                http.tls_context(pem=pem(file))
            except (OSError, ValueError) as error:
                assert CANARY not in str(error)
                assert error.__cause__ is None

        yield holds
        os.close(kept)


def _refused(parameters: str, file: Path) -> None:
    """Name a file in parameters of PostgreSQL: the only problem that is told is one without a line of it."""
    try:
        parse_database_url("host=h " + parameters.format(file)).conninfo  # noqa: B018 - that it can be made
    except ValueError as error:
        assert CANARY not in str(error)
        assert str(error).isprintable()
        assert "parameter " in str(error)


files = Target(
    "files",
    (texts | near(_PROFILE, _PEM)).map(_bytes) | st.binary(max_size=100),
    _opened,
    bytes,
    (_bytes(_PROFILE), _bytes(_PEM)),
    cases=100,
)
