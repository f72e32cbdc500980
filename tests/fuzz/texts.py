"""Inputs that several targets are asked with: texts that parsers stumble over, and JSON of any shape."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hypothesis.strategies import SearchStrategy

#: What no error, log line or metric may quote.
CANARY = "canary7f3a"

#: Texts that mean something to some parser.
PIECES = (
    *(
        "\x00",
        "\r\n",
        "\n",
        "\t",
        " ",
        "\x7f",
        "\u2028",
        "\ufeff",
        "\u0663",
        "\uff11",
        "é",
        "ß",
        "\u202e",
        "\U0001f600",
    ),
    *("\ud800", "\udcff", "%", "%00", "%zz", "%2f", "#", "?", "&", "=", "@", ":", "//", "/", "\\", "'", '"', "`", "${"),
    *("[", "]", "{", "}", "(", ")", "<", ">", ",", ";", "|", "*", "-", "+", ".", "..", "~", "!", "^", "_", "\x1b[2J"),
    *("0", "-1", "1e999", "NaN", "Infinity", "0x10", "1_0", "9" * 20, "9" * 5000, "true", "null", "::1", "127.0.0.1"),
    *("localhost", "https://", "http://", "postgres://", "redis://", "unix:///", "s", "ms", "h", "1h30m", "-1s", "0s"),
    *("[" * 2000, "a" * 300, CANARY),
)

#: Of any characters: what stands in JSON may be half a surrogate pair.
anything: SearchStrategy[str] = st.text(st.characters(), max_size=20)
texts: SearchStrategy[str] = st.lists(st.sampled_from(PIECES) | anything, max_size=6).map("".join)


def near(*samples: str) -> SearchStrategy[str]:
    """Return texts near good ones: with something put into them at some place, in place of some characters."""

    def changed(sample: str, piece: str, at: int, gone: int) -> str:
        at = at % (len(sample) + 1)
        return sample[:at] + piece + sample[at + gone :]

    samples_ = st.sampled_from(samples)
    return samples_ | st.builds(changed, samples_, texts, st.integers(0, 500), st.integers(0, 5))


def fits_environment(text: str) -> bool:
    """Return whether a variable can be set to this text."""
    try:
        return b"\x00" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def for_environment(of: SearchStrategy[str]) -> SearchStrategy[str]:
    """Return what of these texts a variable can be set to: bytes that are no UTF-8 included."""
    return of.map(lambda text: text.replace("\x00", "").replace("\ud800", "\udcff")).filter(fits_environment)


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Have these variables be all that are set, beside those that Python needs, while the body runs."""
    before = dict(os.environ)
    kept = {name: before[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR") if name in before}
    os.environ.clear()
    os.environ.update(kept | dict(variables))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


#: Numbers that do not fit somewhere.
numbers: SearchStrategy[Any] = (
    st.sampled_from(
        [
            0,
            -1,
            1,
            True,
            2**31,
            2**53,
            2**63 - 1,
            2**63,
            -(2**63) - 1,
            10**18,
            10**400,
            0.5,
            -0.0,
            1e300,
            float("nan"),
            float("inf"),
        ]
    )
    | st.integers()
)
scalars: SearchStrategy[Any] = st.none() | st.booleans() | numbers | texts
#: Any value of JSON, and what Python takes for it: NaN, half of a surrogate pair.
values: SearchStrategy[Any] = st.recursive(
    scalars, lambda some: st.lists(some, max_size=4) | st.dictionaries(texts, some, max_size=4), max_leaves=8
)


def dumped(value: Any) -> bytes:
    """Return a value as JSON."""
    return json.dumps(value).encode()


def spoiled(sample: Any, odd: SearchStrategy[Any] = values) -> SearchStrategy[Any]:
    """Return documents that are like a good one but for a few places, which are missing or hold something else."""
    paths = list(_paths(sample, ()))

    def spoil(changes: list[tuple[tuple[Any, ...], Any, bool]]) -> Any:
        document = json.loads(json.dumps(sample))
        for path, value, gone in changes:
            document = _changed(document, path, value, gone=gone)
        return document

    change = st.tuples(st.sampled_from(paths), odd, st.booleans())
    return st.lists(change, max_size=3).map(spoil)


def _paths(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


def _changed(document: Any, path: tuple[Any, ...], value: Any, *, gone: bool) -> Any:
    """Return a document with another value at a place, or without it; as it is where the place is gone."""
    if not path:
        return value
    *way, last = path
    inner = document
    for key in way:
        try:
            inner = inner[key]
        except (KeyError, IndexError, TypeError):
            return document
    if isinstance(inner, dict):
        inner.pop(last, None) if gone else inner.update({last: value})
    elif isinstance(inner, list) and isinstance(last, int) and last < len(inner):
        inner[last] = value
    return document
