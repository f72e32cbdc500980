"""Whom TLS trusts: each endpoint's own authority, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from psycopg import Connection

from actors.gitops_poller import gitops_poller
from tests.actors.gitops.looking import PATH
from tests.support.argocd import (
    AFTER,
    Argo,
    document,
    insert_endpoint,
    insert_observations,
    settings,
)
from tests.support.http_server import Receiver
from tests.support.replica import Replica
from tests.support.rows import rows
from tests.support.tls import Authority


def test_tls_trusts_the_endpoints_own_authority_alone(replica: Replica, sql: Connection[Any], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    stand_in = Argo({"app": document("app", reconciledAt=AFTER)})
    pem = authority.file.read_text()
    with (
        Receiver(stand_in, tls=authority.server()) as by_address,
        Receiver(stand_in, tls=authority.server("argocd.example")) as by_name,
    ):
        cases = {
            "1 own": (by_address.url, {"tls_ca_pem": pem}),
            "2 named": (by_name.url, {"tls_ca_pem": pem, "tls_server_name": "argocd.example"}),
            "3 unnamed": (by_name.url, {"tls_ca_pem": pem}),
            "4 system": (by_address.url, {}),
            "5 no certificate": (by_address.url, {"tls_ca_pem": "canary"}),
        }
        for name, (url, columns) in cases.items():
            insert_observations(sql, insert_endpoint(sql, name, url, **columns), "app")
        replica.run(gitops_poller, settings())
    query = (
        "SELECT o.polling_state, o.last_error FROM gitops_observations o JOIN argocd_endpoints e"
        " ON e.id = o.argocd_endpoint_id ORDER BY e.name"
    )
    tls = f"argocd fetch: argocd: {PATH}: cannot be reached (tls)"
    assert [(row["polling_state"], row["last_error"]) for row in rows(sql, query)] == [
        ("applied", None),
        ("applied", None),
        ("active", tls),
        ("active", tls),
        ("active", "build argocd client: tls_ca_pem holds no usable certificate"),
    ]
