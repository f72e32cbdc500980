"""What rules, dashboard and runbooks name and the code does not have yet: emptied when it has."""

from __future__ import annotations

METRICS: frozenset[str] = frozenset()
COMMANDS: frozenset[str] = frozenset()
