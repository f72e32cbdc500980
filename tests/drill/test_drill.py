"""Each incident is found with one command, `sb-worker status`, and mended with a second."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.drill.deployment import Deployment
from tests.drill.drilling import drill
from tests.drill.incidents import INCIDENTS, Incident


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Deployment(tmp_path_factory.mktemp("drill")) as deployment:
        yield deployment


@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda incident: incident.title)
def test_an_incident_is_found_with_one_command_and_mended_with_a_second(
    deployment: Deployment, incident: Incident
) -> None:
    record = drill(deployment, incident)
    assert record.mended
