"""What `sb-worker check` finds."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """The result of one check: fine, or what is wrong and what to do. A warning does not fail the command."""

    subject: str
    fine: bool
    text: str
    warning: bool = False
