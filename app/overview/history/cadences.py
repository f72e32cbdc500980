"""How often a sweeper was to be run at some time: by the signs of life from then, else by the settings of now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from app.fleet.processes import Process
from app.fleet.signs_of_life import BEAT, GONE_AFTER
from app.overview.history import grid
from app.overview.history.entry import Entry


def last_sign(process: Process, now: datetime) -> datetime:
    """Return until when a process is known to have lived."""
    return process.ended_at or (now if process.alive else process.seen_at)


class Cadences:
    """The cadences of all sweepers in the past."""

    def __init__(self, settings: Mapping[str, timedelta], processes: Iterable[Process], now: datetime) -> None:
        """`settings` are the cadences that this command was started with."""
        self._settings = settings
        self._now = now
        self._processes = list(processes)
        self._by_worker: dict[str, list[Process]] = defaultdict(list)
        for process in self._processes:
            if process.kind == "worker":
                self._by_worker[f"{process.host}:{process.pid}"].append(process)

    def told_at(self, name: str, since: datetime, until: datetime) -> set[timedelta]:
        """Return the cadences of this sweeper that living processes had in this time; none: nobody has told."""
        return {
            process.cadences[name]
            for process in self._processes
            if name in process.cadences
            and process.started_at - BEAT <= until
            and last_sign(process, self._now) + GONE_AFTER >= since
        }

    def at(self, name: str, when: datetime) -> timedelta | None:
        """Return the cadence at a moment; that of the settings where processes disagree or say nothing."""
        told, own = self.told_at(name, when, when), self._settings.get(name)
        return own if own in told or not told else min(told)

    def of(self, entry: Entry) -> tuple[list[timedelta], bool]:
        """Return the cadences by which a run may have claimed its slot, and whether processes have told them.

        One that the run's own process has told is no guess, also where the slot is of another: releases before 0.3
        claimed the slot that they were sent for.
        """
        worker = self._of_worker(entry)
        if worker is not None:
            return [worker], True
        told = self.told_at(entry.name, entry.started_at, entry.started_at)
        fitting = [each for each in told if entry.requested_by or grid.is_slot(entry.slot, each)]
        if fitting:
            return fitting, True
        own = self._settings.get(entry.name)
        return [own] if own and (entry.requested_by or grid.is_slot(entry.slot, own)) else [], False

    def _of_worker(self, entry: Entry) -> timedelta | None:
        """Return the cadence in the process that made the run; ids of processes come again, so the newest then."""
        began = [
            process
            for process in self._by_worker.get(entry.worker, ())
            if process.started_at - BEAT <= entry.started_at
            and last_sign(process, self._now) + GONE_AFTER >= entry.started_at
        ]
        newest = max(began, key=lambda process: process.started_at, default=None)
        return newest.cadences.get(entry.name) if newest else None
