"""In small, what `make chaos ROUND=sinks` and `ROUND=operator` play for minutes: each kind of strike has an effect."""

from __future__ import annotations

from tests.chaos.deployment import Plan
from tests.chaos.faults.argocd import fail_argocd
from tests.chaos.faults.fault import ByTurns, Strike
from tests.chaos.faults.go_replica import go_beside_ours
from tests.chaos.faults.mail import fail_email
from tests.chaos.faults.operator import look, pause, unlock
from tests.chaos.faults.rolling import replace_one
from tests.chaos.faults.sinks import IMPATIENT, fail_slack, fail_webhook
from tests.chaos.playing import play
from tests.chaos.rounds import Round

SMALL = {"scheduler": 2, "worker": 2, "notifier": 1}
ENOUGH = {"sink": 1, "argocd": 1, "go": 1, "operator": 1, "pause": 1, "unlock": 1, "rolling": 1}


def test_receivers_fail_and_an_operator_is_busy_and_nothing_is_lost_or_left() -> None:
    made = Round(
        "small",
        "receivers and ArgoCD fail, beside an operator, a Go worker and a rolling update",
        (
            Strike("webhook", fail_webhook, every=0.1),
            Strike("slack", fail_slack, every=0.1),
            Strike("email", fail_email, every=0.1),
            Strike("argocd", fail_argocd, every=0.1),
            Strike("hand", ByTurns(look, unlock, pause), every=0.1),
            Strike("go", go_beside_ours, every=0.1),
            Strike("rolling", replace_one, every=1.0),
        ),
        plan=lambda _directory: Plan(settings=IMPATIENT, numbers=SMALL, mail=True),
    )

    played = play(made, seed=1, seconds=4, enough=ENOUGH)

    assert played.violations == []
    assert played.too_few == []
    assert {kind for kind in ENOUGH if not played.effects.get(kind)} == set()
