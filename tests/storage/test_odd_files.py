"""A path in the configuration may lead to a pipe, a device or whatever else: nobody waits for it, and it is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from app.core import http
from app.core.bounded_input import MOST_OF_A_FILE, MOST_OF_A_FOLDER
from app.kms.vault_settings import VaultSettings
from app.notify.settings import NotificationSettings
from app.notify.transport import tls_context
from app.storage.certificates import is_out_of_date
from app.storage.postgres_dsn import parse_database_url
from tests.support.processes import ROOT
from tests.support.tls import Authority
from tests.support.waiting import HUNG_PROCESS

_SERVERS = {"DATABASE_URL": "postgres://u@h/d", "REDIS_URL": "rediss://h", "SB_ENV": "dev"}
_GITOPS = {"SB_WORKER_GITOPS_ENABLED": "true"}
_VAULT = {
    **_GITOPS,
    "SB_KMS_BACKEND": "vault-transit",
    "SB_KMS_VAULT_ADDR": "https://v",
    "SB_KMS_VAULT_KEY": "k",
    "SB_KMS_VAULT_TOKEN": "t",
}
_AWS = {**_GITOPS, "SB_KMS_BACKEND": "aws-kms", "SB_KMS_AWS_REGION": "eu-central-1", "SB_KMS_AWS_KEY_ID": "k"}
#: How a boot is told of each variable's path, and with what around it: what the one line about it begins with.
NAMED: dict[str, tuple[Mapping[str, str], str]] = {
    **{
        f"postgres {name}": (
            {"DATABASE_URL": f"postgres://u@h/d?{query.format(name)}"},
            f"DATABASE_URL: parameter {name} ",
        )
        for name, query in {
            "sslrootcert": "sslmode=verify-full&{}=@",
            "sslcert": "{}=@&sslkey=@",
            "sslcrl": "{}=@",
            "passfile": "{}=@",
            "servicefile": "service=x&{}=@",
        }.items()
    },
    "PGSSLROOTCERT": ({"PGSSLROOTCERT": "@"}, "DATABASE_URL: variable PGSSLROOTCERT "),
    "PGSSLCRL": ({"PGSSLCRL": "@"}, "DATABASE_URL: variable PGSSLCRL "),
    "PGPASSFILE": ({"PGPASSFILE": "@"}, "DATABASE_URL: variable PGPASSFILE "),
    "PGSERVICEFILE": ({"PGSERVICE": "x", "PGSERVICEFILE": "@"}, "DATABASE_URL: variable PGSERVICEFILE "),
    "a secret": ({"DATABASE_URL": "", "DATABASE_URL_FILE": "@"}, "DATABASE_URL_FILE: "),
    "notifications": ({"SB_NOTIFICATION_CA_BUNDLE": "@"}, "SB_NOTIFICATION_CA_BUNDLE: "),
    "vault": ({**_VAULT, "SB_KMS_VAULT_CACERT": "@"}, "SB_KMS_VAULT_CACERT: "),
    "vault's client": ({**_VAULT, "VAULT_CLIENT_CERT": "@", "VAULT_CLIENT_KEY": "@"}, "VAULT_CLIENT_CERT: "),
    "aws": ({**_AWS, "AWS_CA_BUNDLE": "@"}, "AWS_CA_BUNDLE: "),
}
#: Those that may be a directory.
AUTHORITIES: dict[str, tuple[Mapping[str, str], str]] = {
    "the system's": ({"SSL_CERT_FILE": "@"}, "SSL_CERT_FILE: "),
    "requests'": ({"REQUESTS_CA_BUNDLE": "@"}, "REQUESTS_CA_BUNDLE: "),
}
#: Those that are directories.
FOLDERS: dict[str, tuple[Mapping[str, str], str]] = {
    "VAULT_CAPATH": ({**_VAULT, "VAULT_CAPATH": "@"}, "VAULT_CAPATH: "),
    "SSL_CERT_DIR": ({"SSL_CERT_DIR": "@"}, "SSL_CERT_DIR: "),
    "PGSSLCRLDIR": ({"PGSSLCRLDIR": "@"}, "DATABASE_URL: variable PGSSLCRLDIR "),
}
#: Reads the settings of each case in turn, and prints a line for each: a boot that hangs names its case.
_BOOTS = """
import json, os, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
cases, usual = json.loads(sys.argv[1]), dict(os.environ)
for name, variables in cases.items():
    os.environ.clear()
    os.environ.update(usual | variables)
    print(json.dumps([name, None]), flush=True)
    from actors import SWEEPERS
    from app.core.errors import ConfigError
    from app.worker.loading import load
    from sinks import SINKS
    try:
        load(SWEEPERS, SINKS)
    except ConfigError as error:
        print(json.dumps([name, error.problems]), flush=True)
    else:
        print(json.dumps([name, []]), flush=True)
"""


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MOST_OF_A_FILE + 1)


def _without_an_end(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _terminal(path: Path) -> None:
    path.symlink_to(os.ttyname(os.openpty()[1]))


FILES: dict[str, Callable[[Path], None]] = {
    "a pipe": _pipe,
    "a directory": Path.mkdir,
    "too large": _too_large,
    "without an end": _without_an_end,
    "a terminal": _terminal,
}


def _boots(cases: Mapping[str, tuple[Mapping[str, str], str]], path: Path) -> None:
    given = {
        name: {**_SERVERS, **{key: value.replace("@", str(path)) for key, value in variables.items()}}
        for name, (variables, _) in cases.items()
    }
    command = [sys.executable, "-c", _BOOTS, json.dumps(given)]
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, start_new_session=True) as process:
        limit = threading.Timer(HUNG_PROCESS, process.kill)
        limit.start()
        assert process.stdout is not None
        told = dict(map(json.loads, process.stdout))
        limit.cancel()
    assert {name: problems for name, problems in told.items() if problems is None} == {}, "a boot hangs"
    for name, (_, begins) in cases.items():
        assert [line.startswith(begins) and "; " in line for line in told[name]] == [True], (name, told[name])
        assert str(path) not in told[name][0]


@pytest.mark.parametrize("kind", FILES)
def test_a_boot_ends_with_one_line_about_what_is_no_file(kind: str, tmp_path: Path) -> None:
    FILES[kind](tmp_path / "odd")
    _boots(NAMED if kind == "a directory" else {**NAMED, **AUTHORITIES}, tmp_path / "odd")


def test_a_boot_ends_with_one_line_about_what_is_no_folder_of_certificates(tmp_path: Path) -> None:
    _pipe(tmp_path / "pipe")
    _boots(FOLDERS, tmp_path / "pipe")
    large = tmp_path / "folder"
    large.mkdir()
    for number in range(MOST_OF_A_FOLDER // MOST_OF_A_FILE + 1):
        (large / str(number)).touch()
        os.truncate(large / str(number), MOST_OF_A_FILE)
    _boots({name: case for name, case in FOLDERS.items() if name != "SSL_CERT_DIR"}, large)


def test_a_folder_without_an_end_is_not_walked_to_it() -> None:
    _boots({"VAULT_CAPATH": FOLDERS["VAULT_CAPATH"]}, Path("/"))


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A pipe that nobody writes to; whoever waits for it is let go at the end."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    yield path
    os.close(os.open(path, os.O_RDWR))


def _ends(call: Callable[[], Any], pipe: Path) -> None:
    """Call this, which may raise what is said of bad files, and fail where it waits for the pipe."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except (OSError, ValueError) as error:
            raised.append(error)

    caller = threading.Thread(target=run, daemon=True)
    caller.start()
    caller.join(HUNG_PROCESS)
    waits = caller.is_alive()
    if waits:
        os.close(os.open(pipe, os.O_RDWR))
        caller.join(HUNG_PROCESS)
    assert not waits


def test_nobody_waits_for_what_was_a_file_at_boot(pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = str(pipe)
    _ends(lambda: is_out_of_date({"host": "127.0.0.1", "port": 1, "sslrootcert": named}, 1.0), pipe)
    bundle = NotificationSettings.model_construct(ca_bundle=named)
    _ends(lambda: tls_context(bundle), pipe)
    vault = VaultSettings.model_construct(vault_certificate=named, vault_certificate_key=named)
    _ends(vault.vault_context, pipe)
    monkeypatch.setenv("SSL_CERT_FILE", named)
    _ends(http.tls_context, pipe)
    monkeypatch.setenv("SSL_CERT_DIR", str(pipe.parent))
    _ends(http.tls_context, pipe)


def test_libpq_is_given_no_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    authority = Authority(tmp_path)
    certificate, key = authority.files(tmp_path, "client.example")
    (tmp_path / "passwords").write_text("*:*:*:*:p")
    files = {
        "sslrootcert": authority.file,
        "sslcert": certificate,
        "sslkey": key,
        "passfile": tmp_path / "passwords",
    }
    url = parse_database_url("host=h sslmode=verify-full " + " ".join(f"{name}={path}" for name, path in files.items()))
    given = conninfo_to_dict(url.conninfo)
    assert all(Path(str(given[name])).read_bytes() == path.read_bytes() for name, path in files.items())
    for path in files.values():
        path.unlink()
        os.mkfifo(path)
    given = conninfo_to_dict(url.conninfo)
    assert not any(Path(str(given[name])).exists() for name in files)


def test_authorities_are_found_where_the_system_is_told_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "one.pem").write_bytes(authority.file.read_bytes())
    os.mkfifo(folder / "0a1b2c3d.0")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    monkeypatch.setenv("SSL_CERT_DIR", f"/nowhere:{folder}")
    assert len(http.tls_context().get_ca_certs()) == 1
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    monkeypatch.delenv("SSL_CERT_DIR")
    assert len(http.tls_context().get_ca_certs()) == 1
