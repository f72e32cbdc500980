"""Tokens that a key service has wrapped."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg import Connection
from pydantic import SecretStr

from actors.gitops_poller import gitops_poller
from tests.actors.gitops.looking import RUNS
from tests.support.argocd import (
    AFTER,
    TOKEN,
    Argo,
    again,
    document,
    insert_endpoint,
    insert_observations,
    reply,
    settings,
)
from tests.support.http_server import Receiver
from tests.support.replica import Replica
from tests.support.rows import column, rows
from tests.support.tls import Authority


def test_tokens_wrapped_by_vault_are_opened_once_a_run(
    argo: tuple[Argo, Receiver], replica: Replica, sql: Connection[Any], tmp_path: Path
) -> None:
    """The whole way: claim, Vault over TLS with its own authority, ArgoCD, result."""
    stand_in, server = argo
    names = ["app", "bpp", "cpp"]
    stand_in.applications |= {name: document(name, reconciledAt=AFTER) for name in names}
    data_key, nonce = bytes(range(32)), bytes(12)
    sealed = {
        "token_ciphertext": AESGCM(data_key).encrypt(nonce, TOKEN.encode(), None),
        "token_nonce": nonce,
        "token_data_key_ciphertext": b"vault:v1:c2VhbGVk",
        "token_kms_key_id": "vault-transit:transit/sb-wrap",
    }
    insert_observations(sql, insert_endpoint(sql, "main", server.url, **sealed), *names)
    authority = Authority(tmp_path)
    plain = reply({"data": {"plaintext": base64.b64encode(data_key).decode()}})
    with Receiver(plain, tls=authority.server()) as vault:
        own = settings(
            kms_backend="vault-transit",
            vault_address=vault.url,
            vault_token=SecretStr("canary-vault"),
            vault_key="sb-wrap",
            vault_ca=str(authority.file),
        )
        assert list(own.problems(dev=False)) == []
        replica.run(gitops_poller, own)
    assert column(sql, "SELECT DISTINCT polling_state FROM gitops_observations") == ["applied"]
    assert [seen.path for seen in vault.seen] == ["/v1/transit/decrypt/sb-wrap"]
    again(sql)
    sql.execute("UPDATE gitops_observations SET polling_state = 'active', terminal_at = NULL, created_at = now()")
    replica.run(gitops_poller, own)
    assert set(column(sql, "SELECT last_error FROM gitops_observations")) == {
        "unwrap token: vault cannot be reached (connect)"
    }
    assert "canary-vault" not in repr(own) + repr(rows(sql, RUNS))
