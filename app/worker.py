"""Assembles a worker: settings, broker, middleware, one Dramatiq actor for each sweeper.

Imported by `dramatiq` in every worker process and by `periodiq` in the scheduler, by way of `app.actors`. What is
wrong with the settings ends either of them with status 1 and one line a problem.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn

import dramatiq
import redis
import structlog
from dramatiq.errors import Retry
from dramatiq.middleware import Callbacks, Retries

from app import __version__, config, database, logs, metrics, probes, schema
from app import lease as leases
from app.broker import Broker
from app.errors import BootError, ConfigError, SchemaError
from app.events import Fanout, Sink
from app.middleware.lock import SweepLock
from app.middleware.metrics import Metrics
from app.middleware.process import Process
from app.redis_client import Client, connect
from app.runner import Runner
from app.schedule import Every
from app.settings import DatabaseSettings, RedisSettings, WorkerSettings
from app.sweeper import Sweeper, SweeperSettings
from app.tick import Tick

log = structlog.get_logger("worker")

QUEUE = "sweeps"
#: How long Dramatiq waits for a sign of life before it gives a worker's messages to others.
HEARTBEAT = timedelta(seconds=30)
#: How many of a million broker commands look for such workers; about one in ten seconds at our rate of polling.
MAINTENANCE_CHANCE = 5_000

AnySweeper = Sweeper[Any]


def build(sweepers: Sequence[AnySweeper], sinks: Sequence[Sink]) -> Broker:
    """Give the broker with all actors registered, and make it Dramatiq's global one. Exits on bad settings."""
    logs.configure()
    groups: tuple[type[config.Settings], ...] = (
        WorkerSettings,
        DatabaseSettings,
        RedisSettings,
        *(sweeper.settings for sweeper in sweepers),
    )
    try:
        settings: list[Any] = config.load(*groups)
    except ConfigError as error:
        refuse(error)
    worker, db, store, *rest = settings
    logs.configure(worker.log_level)
    if first_process():
        for name in config.unknown(*groups):
            log.warning("variable not known, and not read", variable=name)
    process = _Assembly(worker, db, store, sinks)
    for sweeper, own in zip(sweepers, rest, strict=True):
        process.register(sweeper, own)
    dramatiq.set_broker(process.broker)
    if "periodiq" in sys.modules:
        _end_on_signals()
    return process.broker


def refuse(error: ConfigError) -> NoReturn:
    """Say what is wrong with the settings, once for all worker processes, and end with status 1."""
    if first_process():
        stream = sys.__stderr__ or sys.stderr  # not Dramatiq's pipe: it may not be read any more
        print(*(f"config error: {problem}" for problem in error.problems), sep="\n", file=stream, flush=True)
    sys.exit(1)


def first_process() -> bool:
    """Whether this is the process that speaks for its siblings: the only one, or the first worker."""
    return multiprocessing.parent_process() is None or multiprocessing.current_process().name.endswith("-1")


class _Assembly:
    """The parts of one process."""

    def __init__(
        self, worker: WorkerSettings, db: DatabaseSettings, store: RedisSettings, sinks: Sequence[Sink]
    ) -> None:
        self.settings = worker
        self.database = db
        self.pool = database.pool(db)
        self.queue: Client = connect(store, answer_within=timedelta(seconds=3))
        # The lock's calls must fail while there is still time to act on it.
        self.client: Client = connect(store, answer_within=min(timedelta(seconds=2), worker.lease / 5))
        self.locks = leases.Locks(self.client, namespace=store.namespace, lease=worker.lease)
        self.readiness = probes.Readiness({"postgres": self._ping_postgres, "redis": self.client.ping})
        self.runner = Runner(
            self.pool,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            lease=worker.lease,
            retention=worker.ledger_retention,
            publish=Fanout(sinks).publish,
            budget=worker.budget,
            stopping=lambda: self.readiness.draining,
        )
        self.registered: list[str] = []
        grace = worker.shutdown_grace.total_seconds()
        self.broker = Broker(
            client=self.queue,
            namespace=store.queue_namespace,
            heartbeat_timeout=HEARTBEAT // timedelta(milliseconds=1),
            maintenance_chance=MAINTENANCE_CHANCE,
            middleware=[
                Metrics(),
                Process(boot=self._boot, locks=self.locks, readiness=self.readiness, grace=grace),
                Callbacks(),
                Retries(retry_when=lambda _retries, error: isinstance(error, Retry)),
                SweepLock(self.locks),  # last: its after-hook runs first, so the lock is free before a retry is out
            ],
        )

    def register(self, sweeper: AnySweeper, settings: SweeperSettings) -> None:
        """Make an actor of a sweeper, unless its settings leave it out."""
        if not settings.enabled:
            log.info("scheduler task not registered, it is not configured", task=sweeper.name)
            return
        for warning in settings.warnings:
            log.warning(warning, task=sweeper.name)
        declare = dramatiq.actor(
            actor_name=sweeper.name, queue_name=QUEUE, broker=self.broker, periodic=Every(settings.interval)
        )
        declare(Tick(self.runner, sweeper, settings).run)
        self.registered.append(sweeper.name)
        log.info("scheduler task registered", task=sweeper.name, interval=settings.interval)

    def _boot(self) -> None:
        """Open what the fork must not share; every problem is told in one line and ends the process."""
        host, port = self.settings.local_address
        log.info("starting secrets-bridge worker", version=__version__, local_addr=f"{host}:{port}")
        try:
            self._check_servers()
        except (BootError, SchemaError) as error:
            if first_process():
                log.error("boot failed", error=str(error))
                if isinstance(error, SchemaError):
                    print(error.sql, file=sys.__stderr__, flush=True)
            sys.exit(1)
        self.pool.open()
        for name in self.registered:
            metrics.preset(name)
        metrics.BUILD_INFO.labels(__version__).set(1)
        if first_process():
            try:
                probes.serve((host, port), self.readiness, os.environ["PROMETHEUS_MULTIPROC_DIR"])
            except OSError:
                log.error(
                    "boot failed",
                    error=f"SB_WORKER_LOCAL_ADDR: {host}:{port} cannot be listened on; is it taken?",
                )
                sys.exit(1)

    def _check_servers(self) -> None:
        try:
            self.client.ping()
        except redis.RedisError as error:
            raise BootError(f"REDIS_URL: Redis cannot be reached or refuses us ({type(error).__name__})") from None
        with database.connect(self.database) as connection:
            schema.migrate(connection)

    def _ping_postgres(self) -> None:
        database.ping(self.pool)


def _end_on_signals() -> None:
    """Let SIGTERM end the scheduler with status 0: periodiq has no handler, and process 1 would ignore it."""

    def end(_number: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
