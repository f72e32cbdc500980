"""What each round must have brought about in a minute, on two cores that play nothing else."""

from __future__ import annotations

from tests.chaos.faults import points
from tests.chaos.faults.argocd import fail_argocd
from tests.chaos.faults.clocks import OFF
from tests.chaos.faults.mail import fail_email
from tests.chaos.faults.network import DAMAGES
from tests.chaos.faults.postgres_server import any_of_postgres
from tests.chaos.faults.redis_server import any_of_redis, wiped
from tests.chaos.faults.sinks import fail_slack, fail_webhook
from tests.chaos.faults.stops import LONGER, SEVERAL, SHORTER
from tests.chaos.floors import each, some

_OF_ONE = tuple(f"network: {name}" for name in DAMAGES)
_OF_ALL = tuple(f"network: {name}, to all" for name in DAMAGES)
_KILLED_AT = tuple(f"kill at: {stage}" for stage in points.STAGES)
_STOPPED_AT = tuple(f"stop at: {stage}" for stage in points.STAGES)
_KILLED = tuple(f"kill of: {what}" for what in ("both", "main", "child", "worker", "notifier"))
_KILLED_ANYWHERE = tuple(f"kill at random: {kind}" for kind in ("worker", "notifier", "scheduler"))
_STOPPED_ANYWHERE = tuple(f"stop at random: {kind}" for kind in ("worker", "notifier", "scheduler"))
_CLOCKS = tuple(f"clock of a {kind}" for kind in ("scheduler", "worker", "notifier"))
_SERVERS_CLOCKS = ("clock of redis", "clock of postgres")
_RECEIVERS = ("sink: webhook", "sink: slack", "sink: email")
_OUTSIDE = {"webhook": fail_webhook, "slack": fail_slack, "email": fail_email, "argocd": fail_argocd}
#: How each of them fails, of which no minute has all.
_WAYS = [[kind for kind in fault.kinds if kind.startswith(f"{name}: ")] for name, fault in _OUTSIDE.items()]
_TWENTY = 20

KILL = (
    each(8, "kill in a transaction"),
    each(2, "kill at random", "kill at random: scheduler"),
    each(0.5, *_KILLED_ANYWHERE),
    each(1, *_KILLED_AT),
    some(4, *_KILLED),
)
STOPS = (
    each(20, "stop in a transaction"),
    each(2, "stop at random", "stop at random: scheduler", LONGER, SHORTER, SEVERAL, *_STOPPED_AT),
    each(0.5, *_STOPPED_ANYWHERE),
)
REDIS = (each(7, "redis wiped"), each(1, *wiped.kinds, *any_of_redis.kinds))
POSTGRES = (each(2, "postgres crashed"), each(0.5, *any_of_postgres.kinds))
NETWORK = (each(10, "network"), each(0.5, *_OF_ONE), some(4, *_OF_ALL))
CLOCKS = (each(1, *_CLOCKS), each(2, *_SERVERS_CLOCKS), some(4, *OFF))
SINKS = (
    each(20, "sink"),
    each(10, "argocd"),
    each(4, *_RECEIVERS),
    *(some(4, *ways, most=_TWENTY) for ways in _WAYS),
)
OPERATOR = (
    each(4, "operator"),
    each(1, "pause", "mute", "sweep", "unlock"),  # a command takes seconds where much else is going on
    each(3, "go"),
    each(6, "rolling"),
    each(0.5, "intervals mixed"),
)
ALL = (
    each(2, "kill in a transaction"),
    each(0.5, "kill at random"),
    some(2, *_KILLED_AT),
    some(2, *_KILLED, *_KILLED_ANYWHERE),
    each(6, "stop in a transaction"),
    each(0.5, "stop at random"),
    some(1, SHORTER, LONGER, SEVERAL),
    some(2, *_STOPPED_AT),
    some(1, *_STOPPED_ANYWHERE),
    each(1, "redis wiped"),
    some(1, *wiped.kinds),
    some(2, *any_of_redis.kinds),
    each(0.5, "postgres crashed"),
    some(2, *any_of_postgres.kinds),
    each(4, "network"),
    some(2, *_OF_ONE),
    some(1, *_OF_ALL),
    some(1, *_CLOCKS),
    each(0.5, *_SERVERS_CLOCKS),
    some(1, *OFF),
    each(4, "sink", "argocd"),
    each(0.5, *_RECEIVERS),
    *(some(1, *ways, most=_TWENTY) for ways in _WAYS),
    each(0.5, "operator"),
    each(2, "rolling"),
    some(2, "pause", "mute", "sweep", "unlock"),
    each(0.5, "go", "intervals mixed"),
)
