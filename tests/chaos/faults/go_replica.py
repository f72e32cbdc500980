"""A replica of the Go worker beside ours, for a while: it takes the same locks, and knows no fence."""

from __future__ import annotations

import random
import threading

from tests.chaos.deployment import LEASE_SECONDS, Deployment
from tests.chaos.faults.fault import counting
from tests.support.go_replica import GoReplica

SHORTEST, LONGEST = 2.0, 6.0


@counting("go")
def go_beside_ours(deployment: Deployment, chance: random.Random, over: threading.Event) -> None:
    """Have it tick for some seconds, several times a second.

    It counts when it has changed rows: it has held locks then that ours had to wait for.
    """
    seconds, every = chance.uniform(SHORTEST, LONGEST), chance.uniform(0.2, 0.6)
    with (
        deployment.log.during("go", outage=False),
        GoReplica(deployment.postgres.url(), deployment.redis.url(), every=every, lease=LEASE_SECONDS) as replica,
    ):
        over.wait(seconds)
    deployment.go_held += replica.held
    if any(held.changed for held in replica.held):
        deployment.log.effect("go")
