"""An ArgoCD for each test that wants one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.argocd import Argo
from tests.support.http_server import Receiver


@pytest.fixture
def argo() -> Iterator[tuple[Argo, Receiver]]:
    """Return a stand-in and the server that it answers on."""
    stand_in = Argo()
    with Receiver(stand_in) as server:
        yield stand_in, server
