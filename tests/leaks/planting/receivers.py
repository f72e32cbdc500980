"""Receivers of everything that is sent, which say back whatever they were told, in every way that HTTP has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from urllib.parse import unquote, urlsplit

from tests.leaks.canaries import Canaries
from tests.support.http_server import Receiver, Reply, Seen

#: What is answered in turn to a sink of the deployment: worth a retry, followed by nobody, taken, refused; then taken.
_TURNS = ("500", "302", "200", "400")


class Echo:
    """Answers by the first word of a path, the second one says who is asked: `/500/webhook/...`.

    An answer quotes the request: in its body, as a text and in JSON, in headers, in the target of a redirect.
    """

    def __init__(self, canaries: Canaries, plaintext: Callable[[str], str | None]) -> None:
        self._canaries = canaries
        self._plaintext = plaintext
        self._turns: Counter[str] = Counter()
        #: How often which word was answered to whom.
        self.answered: Counter[tuple[str, str]] = Counter()

    def __call__(self, seen: Seen) -> Reply:
        word, who = [*urlsplit(seen.path).path.split("/"), "", ""][1:3]
        if word == "turns":
            word = (*_TURNS, "200")[min(self._turns[who], len(_TURNS))]
            self._turns[who] += 1
        self.answered[who, word] += 1
        if who == "vault":
            return self._vault(seen)
        if who == "argocd":
            return self._argocd(seen, word)
        return _quoting(seen, int(word) if word.isdigit() else 200)

    def _vault(self, seen: Seen) -> Reply:
        wrapped = seen.json.get("ciphertext", "")
        found = self._plaintext(wrapped)
        if found is None or ":sealed:" in wrapped:
            return _quoting(seen, 403)
        return _json(200, {"data": {"plaintext": found, "key_version": 1}, "lease_id": self._canaries["Vault lease"]})

    def _argocd(self, seen: Seen, word: str) -> Reply:
        said = self._canaries["ArgoCD answer"]
        if word not in ("fine", "shape", "garbage", "broken", "sealed"):
            return _quoting(seen, int(word))
        if word == "garbage":
            return Reply(200, f"<html>{said} {_quote(seen)}".encode(), {"Content-Type": "application/json"})
        if word == "shape":
            return _json(200, {"metadata": said, said: _quote(seen)})
        if "resource-tree" in seen.path:
            return _json(200, {"nodes": [{"kind": said, "name": said, "health": {"message": said}, said: said}]})
        name = unquote(urlsplit(seen.path).path.rpartition("/applications/")[2])
        health = {"status": said, "message": said}
        return _json(200, {"metadata": {"name": name}, "status": {"health": health, "sync": {"status": said}}})


def _quote(seen: Seen) -> str:
    return f"{seen.method} {seen.path} {dict(seen.headers)} {seen.body.decode(errors='replace')}"


def _json(status: int, content: object) -> Reply:
    return Reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


def _quoting(seen: Seen, status: int) -> Reply:
    quote = _quote(seen)
    content = {
        "error": quote,
        "message": quote,
        "code": quote,
        "__type": quote,
        "errors": [quote],
        "retry_after": quote,
    }
    line = quote.encode("ascii", "ignore").decode().replace("\n", " ")[:2000]
    headers = {
        "Content-Type": "application/json",
        "Location": f"http://127.0.0.1:9{seen.path}",
        "WWW-Authenticate": f'Bearer realm="{line}"',
        "Set-Cookie": f"session={line}",
        "X-Request": line,
        "Retry-After": line[:100] if status not in (429, 503) else "1",
    }
    return Reply(status, json.dumps(content).encode(), headers)


def received(receiver: Receiver) -> Iterator[tuple[str, str]]:
    """Yield what has arrived, each part under the name of its place."""
    for seen in list(receiver.seen):
        who = [*urlsplit(seen.path).path.split("/"), "", "?"][2]
        yield f"request to {who}: its path", seen.path
        for name, value in seen.headers.items():
            yield f"request to {who}: its header {name}", f"{name}: {value}"
        yield f"request to {who}: its body", seen.body.decode(errors="replace")
