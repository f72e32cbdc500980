"""No line of ours switches the verification of a certificate off, but where an operator asks for that by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT

#: Arguments and attributes by which libraries are told not to verify, and their values that say so.
_SWITCHES = {
    **dict.fromkeys(("verify", "check_hostname", "validate_certs", "verify_ssl", "ssl_check_hostname"), (False,)),
    **dict.fromkeys(("assert_hostname", "ssl"), (False,)),
    "ssl_cert_reqs": (None, "none", "optional"),
    "cert_reqs": (None, "CERT_NONE", "none"),
}
_NAMES = {"CERT_NONE", "CERT_OPTIONAL", "_create_unverified_context", "_create_stdlib_context"}
#: Protocols whose contexts verify from the start, or are a server's.
_PROTOCOLS = {"PROTOCOL_TLS_CLIENT", "PROTOCOL_TLS_SERVER"}

#: Where it is said on purpose: libpq's fault is looked at once more, with no word to the server but its handshake; and
#: `skip_verify` in REDIS_URL, with a warning.
ASKED_FOR = {
    ("app/storage/certificates.py", "check_hostname = False"),
    ("app/storage/redis_dsn.py", "'ssl_cert_reqs': 'required' if verified else 'none'"),
}


def _off(name: str, value: ast.expr) -> bool:
    values = [node.value for node in ast.walk(value) if isinstance(node, ast.Constant)]
    return name in _SWITCHES and any(one is off or one == off for off in _SWITCHES[name] for one in values)


def _assigned(node: ast.Assign | ast.AnnAssign) -> Iterator[str]:
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        if isinstance(target, ast.Attribute) and node.value is not None and _off(target.attr, node.value):
            yield f"{target.attr} = {ast.unparse(node.value)}"


def _in_a_dict(node: ast.Dict) -> Iterator[str]:
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and _off(str(key.value), value):
            yield f"{key.value!r}: {ast.unparse(value)}"


def _last(node: ast.AST) -> str:
    return ast.unparse(node).rpartition(".")[2]


def found(source: str) -> Iterator[str]:
    """Yield what switches verification off in a module."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.keyword(arg=str(name), value=value) if _off(name, value):
                yield f"{name} = {ast.unparse(value)}"
            case ast.Assign() | ast.AnnAssign():
                yield from _assigned(node)
            case ast.Dict():
                yield from _in_a_dict(node)
            case ast.Attribute() | ast.Name() if _last(node) in _NAMES:
                yield _last(node)
            case ast.Call() if _last(node.func) == "SSLContext" and not _PROTOCOLS & set(map(_last, node.args)):
                yield ast.unparse(node)


@pytest.mark.parametrize(
    "line",
    [
        "requests.get(url, verify=False)",
        "httpx.AsyncClient(verify = False)",
        "context.check_hostname = False",
        "context.verify_mode = ssl.CERT_NONE",
        "from ssl import CERT_NONE\ncontext.verify_mode = CERT_NONE",
        "context = ssl._create_unverified_context()",
        "context = ssl.SSLContext()",
        "context = ssl.SSLContext(ssl.PROTOCOL_TLS)",
        "client = SMTP(validate_certs=False)",
        "pool = Pool(**{'ssl_cert_reqs': 'none'})",
        "Redis(ssl_cert_reqs=None)",
    ],
)
def test_each_way_to_say_it_is_found(line: str) -> None:
    assert list(found(line))
    assert not list(found("requests.get(url, verify=True)  # never verify=False\ntext = 'CERT_NONE'"))


def test_nothing_is_unverified_but_what_is_asked_for_by_name() -> None:
    files = [path for top in ("app", "actors", "sinks") for path in sorted((ROOT / top).rglob("*.py"))]
    assert len(files) > 150
    seen = {(_place(path), what) for path in files for what in found(path.read_text(encoding="utf-8"))}
    assert seen == ASKED_FOR


def _place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
