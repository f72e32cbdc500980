"""What a server may show: a certificate that is good, and three that are not."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.tls import Authority

_NOW = datetime.now(UTC)
_OVER: dict[str, Any] = {"not_before": _NOW - timedelta(days=2), "not_after": _NOW - timedelta(days=1)}

#: Makes a server's context for a name, of an authority that is trusted and another one that is not.
Shown = Callable[[Authority, Authority, str], ssl.SSLContext]
GOOD: Shown = lambda trusted, _, name: trusted.server(name)  # noqa: E731 - one of a table
BAD: dict[str, Shown] = {
    "of an unknown authority": lambda _, other, name: other.server(name),
    "of another name": lambda trusted, _, __: trusted.server("elsewhere.example"),
    "expired": lambda trusted, _, name: trusted.server(name, **_OVER),
}
