"""A run that somebody asks for by hand. It has no slot of the cadence, but the moment at which it begins."""

from __future__ import annotations

from typing import NamedTuple


class Order(NamedTuple):
    """Who wants a run, and what is not to keep it from beginning."""

    requested_by: str
    despite_pause: bool = False
    #: Whether it may change more than the sweeper's brake lets others.
    approved: bool = False
