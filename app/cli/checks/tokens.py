"""The part of `sb-worker check` that opens the tokens of the ArgoCDs with the key service. No ArgoCD is contacted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import psycopg
from psycopg.rows import class_row

from app.cli.checks.finding import Finding
from app.core.errors import BootError, UnwrapFailed
from app.kms.buffers import wipe
from app.kms.envelope import Envelope, open_token
from app.storage import postgres

if TYPE_CHECKING:
    from app.kms.settings import KmsSettings
    from app.storage.settings import DatabaseSettings

_ENVELOPES = """
SELECT token_ciphertext, token_nonce, token_data_key_ciphertext, token_kms_key_id
  FROM argocd_endpoints WHERE enabled AND deleted_at IS NULL
"""


def token_findings(database: DatabaseSettings, settings: KmsSettings) -> Iterator[Finding]:
    """Open each enabled endpoint's token and yield what came of it."""
    subject = f"key service {settings.kms_backend}"
    try:
        with postgres.connect(database) as connection, connection.cursor(row_factory=class_row(Envelope)) as cursor:
            envelopes = cursor.execute(_ENVELOPES).fetchall()
    except (BootError, psycopg.Error):
        return  # reported by database_findings
    reasons = asyncio.run(_failures(envelopes, settings))
    if not reasons:
        yield Finding(subject, True, f"opens the tokens of all {len(envelopes)} enabled ArgoCD endpoints")
    else:
        text = f"{len(reasons)} of {len(envelopes)} ArgoCD tokens do not open: {'; '.join(sorted(set(reasons)))}"
        yield Finding(subject, False, text)


async def _failures(envelopes: Sequence[Envelope], settings: KmsSettings) -> list[str]:
    """Return why tokens do not open, a reason for each."""
    from app.kms.transport import KeyServiceTransport  # noqa: PLC0415 - an HTTP client, for this check alone

    transport = KeyServiceTransport(settings.key_context)
    reasons = []
    try:
        for envelope in envelopes:
            try:
                wipe(await open_token(envelope, settings.keys, transport))
            except UnwrapFailed as error:
                # The key's name is a row's content, which must not be shown.
                reasons.append("wrapped by another key" if "wrapped by key" in str(error) else str(error))
    finally:
        await transport.close()
    return reasons
