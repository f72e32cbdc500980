"""A build that leaks is caught: each leak by the canary that it shows, in the place where it does."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest

from tests.leaks import forcing
from tests.leaks.belongs import strays
from tests.leaks.deployment import Deployment
from tests.leaks.forms import Find
from tests.leaks.leaky import LAUNCHER, LEAKS


@pytest.fixture(scope="module")
def finds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Find]]:
    with Deployment(tmp_path_factory.mktemp("leaky"), LAUNCHER) as deployment:
        forcing.rows_leak(deployment)
        deployment.commands("runs", "-o", "wide")
        deployment.end()
        yield strays(deployment.finds())


@pytest.mark.parametrize(("canary", "place", "form"), LEAKS)
def test_each_leak_is_found(finds: list[Find], canary: str, place: str, form: str) -> None:
    assert any((find.place, find.form) == (place, form) and fnmatchcase(find.canary, canary) for find in finds)
