"""What a check found."""

from __future__ import annotations

from typing import NamedTuple


class Violation(NamedTuple):
    """Something that contradicts a promise."""

    #: The name of the check that found it.
    check: str
    text: str
