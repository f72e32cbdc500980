"""The part of `sb-worker check` that tries the key service: whether the tokens of the ArgoCDs open. None is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import psycopg
from psycopg.rows import class_row

from app.cli.check import Finding
from app.core.errors import BootError, UnwrapFailed
from app.kms.envelope import Envelope, open_token, wipe
from app.storage import postgres

if TYPE_CHECKING:
    from app.kms.settings import KmsSettings
    from app.storage.settings import DatabaseSettings

_ENVELOPES = """
SELECT token_ciphertext, token_nonce, token_data_key_ciphertext, token_kms_key_id
  FROM argocd_endpoints WHERE enabled AND deleted_at IS NULL
"""


def token_findings(settings: DatabaseSettings, own: KmsSettings) -> Iterator[Finding]:
    """Try to open each enabled endpoint's token."""
    subject = f"key service {own.kms_backend}"
    try:
        with postgres.connect(settings) as connection, connection.cursor(row_factory=class_row(Envelope)) as cursor:
            envelopes = cursor.execute(_ENVELOPES).fetchall()
    except (BootError, psycopg.Error):
        return  # what is wrong with the database has been found already
    reasons = asyncio.run(_try(envelopes, own))
    if not reasons:
        yield Finding(subject, True, f"opens the tokens of all {len(envelopes)} enabled ArgoCD endpoints")
    else:
        text = f"{len(reasons)} of {len(envelopes)} ArgoCD tokens do not open: {'; '.join(sorted(set(reasons)))}"
        yield Finding(subject, False, text)


async def _try(envelopes: Sequence[Envelope], own: KmsSettings) -> list[str]:
    from app.kms.transport import KeyServiceTransport  # noqa: PLC0415 - an HTTP client, for this check alone

    transport = KeyServiceTransport(own.key_context)
    reasons = []
    try:
        for envelope in envelopes:
            try:
                wipe(await open_token(envelope, own.keys, transport))
            except UnwrapFailed as error:
                # Which key it was is a row's content.
                reasons.append("wrapped by another key" if "wrapped by key" in str(error) else str(error))
    finally:
        await transport.close()
    return reasons
