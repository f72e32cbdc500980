"""When a wait between two transactions ends."""

from __future__ import annotations

from app.gitops.model import Endpoint, Observation
from app.gitops.poller import Poller
from app.kms.envelope import Envelope
from tests.support.argocd import CREATED, Argo, document, seal, settings
from tests.support.http_server import Receiver
from tests.support.waiting import HUNG


def endpoint(url: str) -> Endpoint:
    sealed = seal()
    envelope = Envelope(
        sealed["token_ciphertext"],
        sealed["token_nonce"],
        sealed["token_data_key_ciphertext"],
        sealed["token_kms_key_id"],
    )
    return Endpoint("endpoint", url, None, None, envelope)


def observations(*names: str) -> list[Observation]:
    return [Observation(name, "endpoint", name, {}, 0, None, CREATED, CREATED) for name in names]


def test_a_wait_ends_when_an_endpoint_could_take_more_that_had_enough_when_the_last_claim_was_made() -> None:
    """However long results are gathered, no endpoint rests meanwhile: the clock of this test stands still."""
    names = ["app-1", "app-2", "app-3", "app-4"]
    argo = Argo({name: document(name) for name in names})
    argo.pause = lambda name: HUNG if name == "app-4" else 0.0
    poller = Poller(settings().keys, None, deadline=2 * HUNG, concurrency=1, fresh=True, clock=lambda: 0.0)
    with Receiver(argo) as server:
        poller.add_endpoints([endpoint(server.url)])
        poller.submit(observations(*names), 20)
        assert poller.busy == ["endpoint"]
        poller.submit([], 20)
        poller.wait(lambda: False)
        assert (poller.busy, poller.done) == ([], False)
        assert [result.observation.application for result in poller.take_results()] == names[:3]
        argo._over.set()
        poller.close()


def test_a_wait_gathers_results_once_nothing_more_is_claimed() -> None:
    """That an endpoint could take more is no reason to write each result by itself: there is no more."""
    names = ["app-1", "app-2", "app-3", "app-4"]
    argo = Argo({name: document(name) for name in names})
    argo.pause = lambda name: 0.5 if name == "app-4" else 0.0
    poller = Poller(settings().keys, None, deadline=HUNG, concurrency=1, fresh=True, clock=lambda: 0.0)
    with Receiver(argo) as server:
        poller.add_endpoints([endpoint(server.url)])
        poller.submit(observations(*names), 20)
        poller.submit([], 20)
        assert not poller.may_claim(over=True)
        poller.wait(lambda: False)
        assert [result.observation.application for result in poller.take_results()] == names
        poller.close()


def test_nothing_more_is_claimed_when_all_that_was_due_is_there() -> None:
    argo = Argo({"app": document("app")})
    poller = Poller(settings().keys, None, deadline=HUNG, concurrency=1, fresh=True)
    with Receiver(argo) as server:
        poller.add_endpoints([endpoint(server.url)])
        poller.submit(observations("app"), 20)
        while poller.pending:
            poller.wait(lambda: False)
            poller.take_results()
        assert poller.done
        poller.close()
