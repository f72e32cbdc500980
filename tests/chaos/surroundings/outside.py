"""What a deployment speaks to outside: receivers of notifications and an ArgoCD, each behind a wire of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from psycopg import Connection

from tests.chaos.surroundings.mailbox import TARGET, Mailbox
from tests.chaos.surroundings.wire import Wire
from tests.support.argocd import Argo, document, insert_endpoint, insert_observations
from tests.support.http_server import Receiver, Reply, Seen
from tests.support.tls import Authority

#: Where a redirect leads: nobody may ever come there.
ELSEWHERE = "/elsewhere"
#: Applications that stay as they are; one that is done, and one that has failed.
PROGRESSING = tuple(f"service-{number}" for number in range(6))
DONE, FAILED = "service-done", "service-failed"
#: Receivers that there are in each round, and the log.
RECEIVERS = frozenset({"webhook", "slack", "noop"})
Answer = Callable[[Seen], Reply]


class Outside:
    """A webhook's receiver, one of Slack's behind TLS, an ArgoCD behind TLS, and a mail server if mail is sent."""

    def __init__(self, directory: Path, *, mail: bool = False) -> None:
        self._stack = ExitStack()
        self._authority = Authority(directory)
        (directory / "stranger").mkdir()
        self._stranger = Authority(directory / "stranger")
        self._contexts = {name: self._authority.server() for name in ("slack", "argocd", "email")}
        self.argo = Argo({name: document(name, "Progressing") for name in PROGRESSING})
        self.argo.applications[DONE] = document(DONE)
        self.argo.applications[FAILED] = document(FAILED, operationState={"phase": "Failed"})
        #: Servers by name; the receivers share one list of what they have seen, and one of what they have accepted.
        self.servers = {
            "webhook": Receiver(),
            "slack": Receiver(tls=self._contexts["slack"]),
            "argocd": Receiver(self.argo, tls=self._contexts["argocd"]),
        }
        self.servers["slack"].seen = self.servers["webhook"].seen
        self.servers["slack"].accepted = self.servers["webhook"].accepted
        self._mailbox = Mailbox(self._contexts["email"], self.servers["webhook"].accepted) if mail else None
        self.wires: dict[str, Wire] = {}

    def __enter__(self) -> Self:
        for name, server in self.servers.items():
            self._stack.enter_context(server)
            self.wires[name] = self._stack.enter_context(Wire(server.port))
        if self._mailbox:
            self._mailbox.start()
            self._stack.callback(self._mailbox.stop)
            self.wires["email"] = self._stack.enter_context(Wire(self._mailbox.port))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def settings(self) -> dict[str, str]:
        """The settings of processes that notify these receivers."""
        return {
            "SB_NOTIFICATION_WEBHOOK_URL": f"http://127.0.0.1:{self.wires['webhook'].port}/webhook",
            "SB_NOTIFICATION_SLACK_URL": f"https://127.0.0.1:{self.wires['slack'].port}/slack",
            "SB_NOTIFICATION_CA_BUNDLE": str(self._authority.file),
            **(self._mailbox.settings(self.wires["email"].port) if self._mailbox else {}),
        }

    @property
    def mailbox(self) -> Mailbox:
        """The mail server, where there is one."""
        assert self._mailbox is not None
        return self._mailbox

    @property
    def receivers(self) -> frozenset[str]:
        """What events are told to, each one of all severities: receivers, and a log."""
        return RECEIVERS | ({TARGET} if self._mailbox else set())

    def watch_applications(self, sql: Connection[Any]) -> None:
        """Insert the endpoint, and an observation of each application that never ends."""
        url = f"https://127.0.0.1:{self.wires['argocd'].port}"
        endpoint = insert_endpoint(sql, "argocd", url, tls_ca_pem=self._authority.pem)
        insert_observations(sql, endpoint, *PROGRESSING)

    @contextmanager
    def answering(self, name: str, answer: Answer | Reply) -> Iterator[None]:
        """Have a server answer this while the body runs."""
        before = self.servers[name].answer
        self.servers[name].answer = answer
        try:
            yield
        finally:
            self.servers[name].answer = before

    @contextmanager
    def with_a_strange_certificate(self, name: str) -> Iterator[None]:
        """Have a server show a certificate that nobody trusts while the body runs."""
        try:
            self._stranger.certify(self._contexts[name])
            self.wires[name].cut()
            yield
        finally:
            self._authority.certify(self._contexts[name])

    @property
    def went_elsewhere(self) -> int:
        """How many requests have followed a redirect."""
        return sum(seen.path == ELSEWHERE for server in self.servers.values() for seen in server.seen)
