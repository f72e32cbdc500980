"""A deployment made of canaries, met by every error there is, shows none of them where it does not belong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.leaks import forcing, operating
from tests.leaks.belongs import BELONGS, belongs, strays
from tests.leaks.deployment import Deployment
from tests.leaks.forms import Find

#: Where something must have been seen, or the search has been blind.
SEEN = (
    *("log of the worker", "log of the notifier", "log of the scheduler", "traces", "mail", "command lines"),
    *("commands to Redis", "names of keys in Redis", "Redis", "statements to PostgreSQL"),
    *("statements in pg_stat_activity", "environment of Apprise's process", "table sweep_run", "table process"),
    *("table notification_event", "table notification_delivery", "table notification_target", "table sweep_state"),
    *("table sweeper_pause", "table sweep_obstacle", "greetings of mail"),
    *(f"page {path} of the worker" for path in ("/metrics", "/healthz", "/readyz", "/", "/still", "/status.json")),
    *("page /configuration of the worker", "page /metrics of the notifier", "page /readyz of the notifier"),
    *(f"request to {sink}: its body" for sink in ("webhook", "slack", "pagerduty", "teams", "discord", "apprise")),
    *(f"output of sb-worker {' '.join(path[:2])}" for path in operating.commands() if path),
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Deployment(tmp_path_factory.mktemp("leaks")) as deployment:
        operating.try_receivers(deployment)
        operating.try_key_services(deployment)
        forcing.rows_fail(deployment)
        operating.look_around(deployment)
        forcing.messages_are_malformed(deployment)
        operating.try_proxy(deployment)
        operating.try_servers(deployment)
        forcing.all_is_told(deployment)
        forcing.redis_refuses(deployment)
        forcing.postgres_refuses(deployment)
        deployment.end()
        yield deployment


@pytest.fixture(scope="module")
def finds(seen: Deployment) -> list[Find]:
    return seen.finds()


def test_no_canary_is_where_it_does_not_belong(finds: list[Find]) -> None:
    assert not strays(finds), "\n".join(map(str, strays(finds)))


def test_each_is_found_where_it_belongs(finds: list[Find]) -> None:
    used = {belongs(find) for find in finds}
    assert [line for line in BELONGS if line not in used] == []


def test_nobody_who_watched_was_blind(seen: Deployment) -> None:
    assert not seen.watch.failed
    assert not set(SEEN).difference(seen.evidence.places)
