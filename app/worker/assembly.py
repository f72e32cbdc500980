"""Assembles a worker: settings, broker, middleware, one Dramatiq actor for each sweeper, and the two that notify.

Imported by `dramatiq` in every worker process and by `periodiq` in the scheduler, by way of `app.actors`. What is
wrong with the settings ends either of them with status 1 and one line a problem.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import dramatiq
import redis
import structlog
from dramatiq.cli import make_argument_parser
from dramatiq.middleware import Callbacks

from app import __version__
from app.core import config, metrics
from app.core.errors import BootError, ConfigError, SchemaError
from app.core.logging import configure_logging
from app.notify import routing
from app.notify.collector import NotificationCollector
from app.notify.deliveries import Deliveries
from app.notify.notifier import Notifier, RetryLater
from app.notify.outbox import Outbox
from app.notify.settings import NotificationSettings
from app.storage import migrations, postgres
from app.storage.redis import Client, connect
from app.storage.settings import DatabaseSettings, RedisSettings
from app.sweeping import lock
from app.sweeping.actor import Tick
from app.sweeping.runner import Runner
from app.sweeping.schedule import Every
from app.sweeping.sweeper import Sweeper, SweeperSettings
from app.worker import probes
from app.worker.broker import Broker
from app.worker.middleware.lifecycle import Process
from app.worker.middleware.lock import SweepLock
from app.worker.middleware.metrics import Metrics
from app.worker.middleware.retries import SweepAndSinkRetries
from app.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from app.notify.sink import Transport
    from app.notify.transport import ThreadLoops

log = structlog.get_logger("worker")

SWEEPS, SINKS = "sweeps", "sinks"
DELIVER, RELAY = "notification-deliver", "notification-relay"
#: How long Dramatiq waits for a sign of life before it gives a worker's messages to others.
HEARTBEAT = timedelta(seconds=30)
#: How many of a million broker commands look for such workers; about one in ten seconds at our rate of polling.
MAINTENANCE_CHANCE = 5_000

AnySweeper = Sweeper[Any]


class Loaded(NamedTuple):
    """Every setting of a process, and who is to be notified."""

    worker: WorkerSettings
    database: DatabaseSettings
    store: RedisSettings
    notification: NotificationSettings
    sweepers: tuple[SweeperSettings, ...]
    targets: tuple[routing.Target, ...]


CORE = (WorkerSettings, DatabaseSettings, RedisSettings, NotificationSettings)


def groups(sweepers: Sequence[AnySweeper], sinks: Sequence[routing.AnySink]) -> tuple[type[config.Settings], ...]:
    """Give every group of settings, in the order in which `sb-worker config` shows them."""
    return (*CORE, *(sweeper.settings for sweeper in sweepers), *(sink.settings for sink in sinks))


def load(sweepers: Sequence[AnySweeper], sinks: Sequence[routing.AnySink]) -> Loaded:
    """Read every setting. Raises ConfigError with all problems, those across settings too."""
    found, problems = config.attempt(*groups(sweepers, sinks))
    each: list[Any] = list(found)
    if problems := problems + _across(sweepers, sinks, each):
        raise ConfigError(problems)
    worker, db, store, notification, *rest = each
    targets = routing.targets(sinks, rest[len(sweepers) :])
    return Loaded(worker, db, store, notification, tuple(rest[: len(sweepers)]), tuple(targets))


def _across(sweepers: Sequence[AnySweeper], sinks: Sequence[routing.AnySink], each: list[Any]) -> list[str]:
    """Say what is wrong across groups of settings, as far as these can be read; None stands for one that cannot."""
    worker, _, _, notification, *rest = each
    own, told = rest[: len(sweepers)], rest[len(sweepers) :]
    problems: list[str] = []
    if notification is not None and None not in told:
        targets = routing.targets(sinks, told)
        problems += routing.problems(notification, targets, [sweeper.name for sweeper in sweepers])
    if worker is not None:
        enabled = [one for one in own if one is not None and one.enabled]
        problems += [problem for one in enabled for problem in one.problems(dev=worker.environment == "dev")]
    return problems


def build(sweepers: Sequence[AnySweeper], sinks: Sequence[routing.AnySink]) -> Broker:
    """Give the broker with all actors registered, and make it Dramatiq's global one. Exits on bad settings."""
    configure_logging()
    try:
        loaded = load(sweepers, sinks)
    except ConfigError as error:
        refuse(error)
    configure_logging(loaded.worker.log_level)
    if first_process():
        for name in config.unknown(*groups(sweepers, sinks)):
            log.warning("variable not known, and not read", variable=name)
    process = _Assembly(loaded)
    for sweeper, own in zip(sweepers, loaded.sweepers, strict=True):
        process.register(sweeper, own)
    process.register_notifier()
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

    def __init__(self, loaded: Loaded) -> None:
        worker, store = loaded.worker, loaded.store
        self.loaded = loaded
        self.queues = _queues()
        self.pool = postgres.pool(loaded.database)
        self.queue: Client = connect(store, answer_within=timedelta(seconds=3))
        # The lock's calls must fail while there is still time to act on it.
        self.client: Client = connect(store, answer_within=min(timedelta(seconds=2), worker.lease / 5))
        self.locks = lock.Locks(self.client, namespace=store.namespace, lease=worker.lease)
        self.readiness = probes.Readiness({"postgres": self._ping_postgres, "redis": self.client.ping})
        self.router = routing.Router(loaded.targets)
        self.outbox = Outbox(self.router, self._trigger)
        self.runner = Runner(
            self.pool,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            lease=worker.lease,
            retention=worker.ledger_retention,
            outbox=self.outbox,
            budget=worker.budget,
            stopping=lambda: self.readiness.draining,
        )
        self._loops: ThreadLoops | None = None
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
                SweepAndSinkRetries(),
                SweepLock(self.locks),  # last: its after-hook runs first, so the lock is free before a retry is out
            ],
        )

    @property
    def notifies(self) -> bool:
        """Whether this process serves the queue of the sinks."""
        return SINKS in self.queues

    @property
    def address(self) -> tuple[str, int]:
        """Where this process serves its probes: one that only notifies has an address of its own."""
        only = self.queues == {SINKS}
        return self.loaded.notification.local_address if only else self.loaded.worker.local_address

    def register(self, sweeper: AnySweeper, settings: SweeperSettings) -> None:
        """Make an actor of a sweeper, unless its settings leave it out."""
        if not settings.enabled:
            log.info("scheduler task not registered, it is not configured", task=sweeper.name)
            return
        for warning in settings.warnings:
            log.warning(warning, task=sweeper.name)
        declare = dramatiq.actor(
            actor_name=sweeper.name, queue_name=SWEEPS, broker=self.broker, periodic=Every(settings.interval)
        )
        declare(Tick(self.runner, sweeper, settings).run)
        self.registered.append(sweeper.name)
        log.info("scheduler task registered", task=sweeper.name, interval=settings.interval)

    def register_notifier(self) -> None:
        """Make the two actors of the queue `sinks`: one delivers, one finds what Redis has lost."""
        settings = self.loaded.notification
        notifier = Notifier(self.pool, Deliveries(self.router.targets, settings), self.outbox, self._attempt)

        def relay() -> None:
            held = lock.current.get()
            if held is not None:
                held.done = held.slot
            fine = notifier.relay()
            metrics.RUNS.labels(RELAY, "success" if fine else "failure").inc()
            if fine:
                metrics.LAST_SUCCESS.labels(RELAY).set_to_current_time()

        declare = dramatiq.actor(actor_name=DELIVER, queue_name=SINKS, broker=self.broker, throws=(RetryLater,))
        declare(notifier.deliver)
        cadence = Every(settings.relay)
        dramatiq.actor(actor_name=RELAY, queue_name=SINKS, broker=self.broker, periodic=cadence)(relay)
        self.registered.append(RELAY)

    def _trigger(self, delivery: int) -> None:
        self.broker.get_actor(DELIVER).send(delivery)

    def _attempt(self, attempt: Callable[[Transport], Coroutine[Any, Any, None]]) -> None:
        self._way_out()(attempt)

    def _way_out(self) -> ThreadLoops:
        """Give the way out; made on demand, so that a process that only sweeps never loads it."""
        if self._loops is None:
            from app.notify.transport import ThreadLoops  # noqa: PLC0415 - 17 MiB that only a notifier needs

            self._loops = ThreadLoops(self.loaded.notification)
        return self._loops

    def _boot(self) -> None:
        """Open what the fork must not share; every problem is told in one line and ends the process."""
        host, port = self.address
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
        for target in self.loaded.targets:
            metrics.preset_sink(target.sink.name)
        if self.notifies:
            try:
                self._way_out()
            except ValueError as error:  # the one setting that only TLS itself can judge
                refuse(ConfigError([str(error)]))
        metrics.BUILD_INFO.labels(__version__).set(1)
        if first_process():
            try:
                gauges = [NotificationCollector(self.pool, list(self.router.targets))] if self.notifies else []
                probes.serve((host, port), self.readiness, os.environ["PROMETHEUS_MULTIPROC_DIR"], gauges)
            except OSError:
                log.error(
                    "boot failed",
                    error=f"{self._address_name}: {host}:{port} cannot be listened on; is it taken?",
                )
                sys.exit(1)

    @property
    def _address_name(self) -> str:
        return "SB_NOTIFICATION_LOCAL_ADDR" if self.queues == {SINKS} else "SB_WORKER_LOCAL_ADDR"

    def _check_servers(self) -> None:
        try:
            self.client.ping()
        except redis.RedisError as error:
            raise BootError(f"REDIS_URL: Redis cannot be reached or refuses us ({type(error).__name__})") from None
        with postgres.connect(self.loaded.database) as connection:
            migrations.migrate(connection)

    def _ping_postgres(self) -> None:
        postgres.ping(self.pool)


def _queues() -> set[str]:
    """Read from Dramatiq's command line which queues this process serves; all of them unless it says."""
    if multiprocessing.parent_process() is None:  # a scheduler or a command: it serves none
        return set()
    known, _ = make_argument_parser().parse_known_args(sys.argv[1:])  # type: ignore[no-untyped-call]
    return set(known.queues or (SWEEPS, SINKS))


def _end_on_signals() -> None:
    """Let SIGTERM end the scheduler with status 0: periodiq has no handler, and process 1 would ignore it."""

    def end(_number: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
