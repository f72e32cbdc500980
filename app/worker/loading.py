"""Reads every setting of a process, and what is wrong with all of them at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from app.core import config
from app.core.egress import EgressSettings, file_problems
from app.core.errors import ConfigError
from app.core.role import this_process
from app.notify import routing
from app.notify.heartbeat.settings import HeartbeatSettings
from app.notify.settings import NotificationSettings
from app.storage.settings import DatabaseSettings, RedisSettings
from app.supervisor.output import Output
from app.sweeping.sweeper import Sweeper, SweeperSettings
from app.tracing.settings import TracingSettings
from app.worker.settings import WorkerSettings

AnySweeper = Sweeper[Any]


class Loaded(NamedTuple):
    """Every setting of a process, and who is to be notified."""

    worker: WorkerSettings
    database: DatabaseSettings
    redis: RedisSettings
    egress: EgressSettings
    notification: NotificationSettings
    heartbeat: HeartbeatSettings
    tracing: TracingSettings
    sweepers: tuple[SweeperSettings, ...]
    targets: tuple[routing.Target, ...]

    @property
    def warnings(self) -> list[str]:
        """What of a process's own settings is accepted and still worth a line at boot."""
        own = (self.worker, self.database, self.redis, self.notification)
        return [warning for settings in own for warning in settings.warnings]


CORE = (
    *(WorkerSettings, DatabaseSettings, RedisSettings, EgressSettings),
    *(NotificationSettings, HeartbeatSettings, TracingSettings),
)


def groups(sweepers: Sequence[AnySweeper], sinks: Sequence[routing.AnySink]) -> tuple[type[config.Settings], ...]:
    """Return every group of settings, in the order in which `sb-worker config` shows them."""
    return (*CORE, *(sweeper.settings for sweeper in sweepers), *(sink.settings for sink in sinks))


def load(sweepers: Sequence[AnySweeper], sinks: Sequence[routing.AnySink]) -> Loaded:
    """Read every setting. Raises ConfigError with all problems, those across settings too."""
    found, problems = config.attempt(*groups(sweepers, sinks))
    if problems := problems + _across(sweepers, sinks, found):
        raise ConfigError(problems)
    read: list[Any] = list(found)
    worker, database, redis, egress, notification, heartbeat, tracing, *others = read
    targets = routing.targets(sinks, others[len(sweepers) :])
    of_sweepers = tuple(others[: len(sweepers)])
    return Loaded(worker, database, redis, egress, notification, heartbeat, tracing, of_sweepers, tuple(targets))


def _across(sweepers: Sequence[AnySweeper], sinks: Sequence[routing.AnySink], groups: Sequence[Any]) -> list[str]:
    """Return what is wrong across groups of settings; None among them stands for one that cannot be read."""
    worker, _, _, _, notification, heartbeat, _, *others = groups
    of_sweepers, of_sinks = others[: len(sweepers)], others[len(sweepers) :]
    problems: list[str] = list(file_problems())
    if notification is not None and None not in of_sinks:
        targets = routing.targets(sinks, of_sinks)
        problems += routing.problems(notification, targets, [sweeper.name for sweeper in sweepers])
    if notification is not None and heartbeat is not None and None not in of_sweepers:
        named = zip(sweepers, of_sweepers, strict=True)
        on = [sweeper.name for sweeper, settings in named if settings.enabled]
        problems += heartbeat.problems(notification, [sweeper.name for sweeper in sweepers], on)
    if worker is not None:
        enabled = [settings for settings in of_sweepers if settings is not None and settings.enabled]
        dev = worker.environment == "dev"
        problems += [problem for settings in enabled for problem in settings.problems(dev=dev)]
    return problems


def refuse(error: ConfigError) -> NoReturn:
    """Print what is wrong with the settings, once for all sibling processes, and exit with status 1."""
    if this_process().first:
        output = Output(sys.__stderr__ or sys.stderr)  # not Dramatiq's pipe: it may not be read any more
        for problem in error.problems:
            output.write(f"config error: {problem}\n")
    sys.exit(1)
