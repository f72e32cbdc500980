"""ArgoCD's answers, bytes and documents of any shape: a snapshot that can be stored, or an outcome without a value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import strategies as st

from app.core import jsonb
from app.gitops import documents
from app.gitops.client import Client, PollFailed
from app.gitops.documents import Application, WrongShape
from app.gitops.model import PollOutcome
from app.gitops.verdict import Verdict, decide
from tests.fuzz.http_answers import wholes
from tests.fuzz.target import Holds, Servers, Target, target
from tests.fuzz.texts import CANARY, environment, near, spoiled, texts, values
from tests.fuzz.wire import Script, Speaker, answer_requests, loop, scripts
from tests.support.argocd import AFTER, TREE, document
from tests.support.waiting import HUNG

NAME = "app"
FULL = document(
    NAME,
    operationState={"phase": "Succeeded", "startedAt": AFTER, "finishedAt": AFTER, "message": CANARY},
    reconciledAt=AFTER,
)
TIMES = (
    "2026-11-23T09:00:30Z",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59.999999-23:59",
    "2026-11-23",
    "20261123T090030Z",
)
odd = values | near(*TIMES)
#: What the poller claims: a row of before 1970 is taken as of then.
moments = st.datetimes(
    datetime(1970, 1, 2),  # noqa: DTZ001 - the strategy adds a time zone
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=23, minutes=59)), timezone(-timedelta(hours=23))]),
)


@target("argocd-documents", st.tuples(spoiled(FULL, odd) | values, moments, st.booleans()), cases=300)
def argocd_documents(given: tuple[object, datetime, bool]) -> None:
    content, created_at, fresh = given
    try:
        found = documents.application(content, NAME)
    except WrongShape as error:
        assert CANARY not in str(error)
        return
    _check(found)
    assert decide(found, created_at, fresh=fresh) in Verdict


@target("argocd-trees", spoiled(TREE, odd) | values, cases=200)
def argocd_trees(content: object) -> None:
    try:
        found = documents.resources(content)
    except WrongShape as error:
        assert CANARY not in str(error)
        return
    assert jsonb.problems(found) == []
    assert len(found["resources"]) <= documents.MOST_RESOURCES
    assert all(len(text) <= documents.MOST_MESSAGE for one in found["resources"] for text in one.values())


def _check(found: Application) -> None:
    snapshot = found.snapshot()
    assert jsonb.problems(snapshot) == []
    assert all(len(text) <= documents.MOST_MESSAGE for text in snapshot.values())
    times = (found.reconciled_at, found.started_at, found.finished_at)
    assert all(moment is None or moment.tzinfo is not None for moment in times)


@contextmanager
def _opened(_servers: Servers) -> Iterator[Holds[Script]]:
    with loop() as run:
        speaker = Speaker(answer_requests)
        run(speaker.start())
        clients = {}
        with environment({}):
            for deadline in (0.05, HUNG):
                base, token = f"http://127.0.0.1:{speaker.port}", bytearray(CANARY.encode())
                clients[deadline] = Client(base, token, ca_pem=None, server_name=None, deadline=deadline, connections=2)

        async def case(given: Script) -> None:
            speaker.script = given
            client = clients[0.05 if given.ending == "stay" else HUNG]
            try:
                found, used = await client.application(NAME, {"project": "p"})
                _check(found)
                assert jsonb.problems(await client.resources(NAME, used)) == []
            except PollFailed as error:
                assert error.outcome in PollOutcome
                assert CANARY not in f"{error} {error.text}"
                assert error.text.isprintable()
                assert error.retry_after is None or error.retry_after >= 0

        try:
            yield lambda given: run(case(given))
        finally:
            for client in clients.values():
                run(client.close())
            run(speaker.stop())


_BODIES = (spoiled(FULL, odd) | spoiled(TREE, odd)).map(json.dumps).map(str.encode) | texts.map(
    lambda text: text.encode("utf-8", "surrogatepass")
)
argocd_answers = Target("argocd-answers", scripts(wholes(_BODIES)), _opened, lambda data: Script((data,)), cases=120)
