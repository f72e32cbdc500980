"""Assembles a worker: settings, broker, middleware, one Dramatiq actor for each sweeper, and the two that notify.

Imported by `dramatiq` in every worker process and by `periodiq` in the scheduler, by way of `app.actors`. What is
wrong with the settings ends either of them with status 1 and one line a problem.
"""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import dramatiq
import redis
import structlog
from dramatiq.middleware import Callbacks

from app import __version__
from app.core import config, metrics, threads
from app.core.errors import BootError, ConfigError, LeaseLost, SchemaError
from app.core.logging import configure_logging
from app.core.role import SINK_QUEUE, SWEEP_QUEUE, Kind, speaks_for_all, this_process, this_replica
from app.fleet.signs_of_life import Identity, SignsOfLife
from app.gitops.settings import GitopsSettings
from app.notify import routing
from app.notify.collector import NotificationCollector
from app.notify.heartbeat.beat import LOOK_EVERY, Heartbeat
from app.notify.notifier import Notifier, RetryLater
from app.notify.outbox import Outbox
from app.overview.gauges import FleetGauges
from app.overview.sources.standings import Watched
from app.overview.views import Asked
from app.overview.watch import FleetWatch
from app.page.site import Site
from app.storage import migrations, postgres
from app.storage.redis import Client, WaitingClient, check_shards, connect
from app.storage.redis_reasons import explain
from app.supervisor import stops
from app.supervisor.allocator import give_back_large_blocks
from app.supervisor.output import Output
from app.sweeping import lock
from app.sweeping.actor import SweepActor
from app.sweeping.lock import RunOutcome
from app.sweeping.runner import Runner
from app.sweeping.schedule import Every
from app.sweeping.streak import Telling
from app.sweeping.sweeper import SweeperSettings
from app.sweeping.unserved import KNOWN_SCHEMA, Pair, Unserved, unserved
from app.tracing import spans
from app.tracing.start import start as start_tracing
from app.worker import deployment_overview, file_limit, probes
from app.worker.broker import Broker
from app.worker.exposition import Exposition
from app.worker.loading import AnySweeper, Loaded, groups, load, refuse
from app.worker.messages import Fault
from app.worker.middleware.lifecycle import Lifecycle
from app.worker.middleware.lock import SweepLock
from app.worker.middleware.metrics import dramatiq_metrics
from app.worker.middleware.retries import SweepAndSinkRetries
from app.worker.middleware.tracing import Tracing
from app.worker.probes import Probes
from app.worker.readiness import Check, Readiness, Unready, postgres_check, redis_check

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from app.notify.sink import Transport
    from app.notify.transport import ThreadLoops

log = structlog.get_logger("worker")

DELIVER, RELAY, BEAT = "notification-deliver", "notification-relay", "heartbeat"
#: How long Dramatiq waits for a sign of life before it gives a worker's messages to others.
HEARTBEAT = timedelta(seconds=30)
#: How long a call to Redis may take, those that wait for messages included; a lock's calls take less.
ANSWER_WITHIN = timedelta(seconds=3)


def build(sweepers: Sequence[AnySweeper], sinks: Sequence[routing.AnySink]) -> Broker:
    """Return the broker with all actors registered, and make it Dramatiq's global one. Exits on bad settings."""
    configure_logging()
    give_back_large_blocks()
    try:
        loaded = load(sweepers, sinks)
    except ConfigError as error:
        refuse(error)
    configure_logging(loaded.worker.log_level)
    if speaks_for_all():
        for name in config.unknown(*groups(sweepers, sinks)):
            log.warning("variable not known, and not read", variable=name)
        for warning in loaded.warnings:
            log.warning(warning)
    process = _Assembly(loaded, groups(sweepers, sinks))
    for sweeper, settings in zip(sweepers, loaded.sweepers, strict=True):
        process.register(sweeper, settings)
    process.register_notifier()
    process.register_heartbeat()
    if process.role.kind is Kind.SCHEDULER:
        process.pool.open()
        threads.start("signs-of-life", process.signs_of_life.keep)
    process.trace_schedules()
    dramatiq.set_broker(process.broker)
    return process.broker


class _Assembly:
    """The parts of one process."""

    def __init__(self, loaded: Loaded, declared: Sequence[type[config.Settings]]) -> None:
        worker, store = loaded.worker, loaded.redis
        self.loaded = loaded
        self.groups = declared
        self.role = this_process()
        self.pool = postgres.pool(loaded.database, worker.lease / 2)  # before its lock is lost, a run is ended
        self.queue: Client = connect(store, answer_within=ANSWER_WITHIN)
        # The lock's calls must fail while there is still time to act on it.
        self.client: Client = connect(store, answer_within=min(timedelta(seconds=2), worker.lease / 5))
        self.locks = lock.Locks(self.client, namespace=store.namespace, lease=worker.lease)
        self.readiness = Readiness(
            {
                "postgres": postgres_check(self.pool),
                "redis": self._check_redis,
            }
        )
        self.shared_values = metrics.prepare(worker.metrics_directory)
        self.router = routing.Router(loaded.targets)
        self.outbox = Outbox(self.router, self._trigger)
        self.runner = Runner(
            self.pool,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            lease=worker.lease,
            retention=worker.ledger_retention,
            outbox=self.outbox,
            telling=Telling(loaded.notification.failures_before, loaded.notification.remind_after),
            budget=worker.budget,
            most_pages=worker.pages,
            stopping=lambda: self.readiness.draining,
        )
        self.say = log.info if speaks_for_all() else log.debug
        self.registered: list[str] = []
        self.watched: list[Watched] = []
        self.pairs: list[Pair] = []
        grace = worker.shutdown_grace.total_seconds()
        self.broker = Broker(
            client=self.queue,
            waiting=WaitingClient(store, ANSWER_WITHIN, connections=2 * len(self.role.queues) or 1),
            serves_sweeps=SWEEP_QUEUE in self.role.queues,
            namespace=store.queue_namespace,
            heartbeat_timeout=HEARTBEAT // timedelta(milliseconds=1),
            middleware=[
                dramatiq_metrics(self.shared_values),
                Lifecycle(
                    boot=self._boot,
                    end=self._end,
                    locks=self.locks,
                    readiness=self.readiness,
                    grace=grace,
                ),
                Callbacks(),
                *([Tracing()] if loaded.tracing.enabled else []),
                SweepAndSinkRetries(),
                SweepLock(self.locks),  # last: its after-hook runs first, so the lock is free before a retry is out
            ],
        )

    def register(self, sweeper: AnySweeper, settings: SweeperSettings) -> None:
        """Make an actor of a sweeper, unless its settings leave it out."""
        self.pairs.append((sweeper, settings))
        if not settings.enabled:
            self.say("scheduler task not registered, it is not configured", task=sweeper.name)
            return
        for warning in settings.warnings if speaks_for_all() else ():
            log.warning(warning, task=sweeper.name)
        declare = dramatiq.actor(
            actor_name=sweeper.name, queue_name=SWEEP_QUEUE, broker=self.broker, periodic=Every(settings.tick)
        )
        declare(SweepActor(self.runner, sweeper, settings).run)
        self.registered.append(sweeper.name)
        self.watched.append(Watched(sweeper.name, sweeper.rests_without(settings), settings.tick))
        self.say("scheduler task registered", task=sweeper.name, interval=settings.tick)

    def register_notifier(self) -> None:
        """Make the two actors of the queue `sinks`: one delivers a batch, one finds what Redis has lost."""
        settings = self.loaded.notification
        notifier = Notifier(
            self.pool,
            self.router.targets,
            settings,
            self.outbox,
            self._attempt,
            stopping=lambda: self.readiness.draining,
        )

        def relay() -> RunOutcome:
            tick = lock.current.get()
            if tick is None:  # the middleware's doing; without a lock nothing may run
                raise LeaseLost
            fine = False
            with suppress(LeaseLost), spans.span("run", RELAY, slot=tick.slot):
                fine = notifier.relay(tick.lease.check)
            metrics.RUNS.labels(RELAY, "success" if fine else "failure").inc()
            if fine:
                metrics.relay_last_success().set(tick.taken_at / 1e6)
            return lock.DONE

        declare = dramatiq.actor(actor_name=DELIVER, queue_name=SINK_QUEUE, broker=self.broker, throws=(RetryLater,))
        declare(notifier.deliver)
        cadence = Every(settings.relay)
        dramatiq.actor(actor_name=RELAY, queue_name=SINK_QUEUE, broker=self.broker, periodic=cadence)(relay)
        self.registered.append(RELAY)

    @cached_property
    def signs_of_life(self) -> SignsOfLife:
        """The signs of life of this process, once every sweeper is registered."""
        identity = Identity(
            self.role.kind,
            self.loaded.notification.deployment,
            {watched.name: watched.interval for watched in self.watched},
            {sweeper.name: own.switch for sweeper, own in self.pairs if not own.enabled},
            self.role.queues,
        )
        ticks = self.role.kind is Kind.SCHEDULER
        return SignsOfLife(
            self.pool,
            identity,
            draining=lambda: self.readiness.draining,
            ticked_at=lambda: self.broker.ticked_at if ticks else -math.inf,
        )

    def register_heartbeat(self) -> None:
        """Make the actor that tells a dead man's switch of good runs; without a URL it has no ticks."""
        settings, common = self.loaded.heartbeat, self.loaded.notification
        chosen = settings.chosen(sweeper.name for sweeper, of_it in self.pairs if of_it.enabled)
        told = Heartbeat(self.pool, settings, chosen, common.timeout, self._attempt)

        def heartbeat() -> RunOutcome:
            tick = lock.current.get()
            if tick is not None:  # none where there is no URL, and another replica has one
                fine = told.beat()
                metrics.RUNS.labels(BEAT, "success" if fine else "failure").inc()
            return lock.DONE

        cadence: dict[str, Any] = {}
        if settings.enabled:
            cadence["periodic"] = Every(LOOK_EVERY)
            self.registered.append(BEAT)
        dramatiq.actor(actor_name=BEAT, queue_name=SINK_QUEUE, broker=self.broker, **cadence)(heartbeat)

    def trace_schedules(self) -> None:
        """Start traces in a scheduler, which forks no more; a worker does when it boots."""
        if self.role.kind is Kind.SCHEDULER:
            self._start_tracing()
            stops.before_the_end(spans.close)

    def _start_tracing(self) -> None:
        try:
            start_tracing(self.loaded.tracing, self.role.kind.value)
        except BootError as error:
            self._fail(str(error))

    def _trigger(self, delivery: int) -> None:
        self.broker.get_actor(DELIVER).send(delivery)

    def _attempt(self, attempt: Callable[[Transport], Coroutine[Any, Any, None]]) -> None:
        self._loops(attempt)

    @cached_property
    def _loops(self) -> ThreadLoops:
        """What attempts run on; made on demand, so that a process that only sweeps never loads it."""
        from app.notify.transport import ThreadLoops  # noqa: PLC0415 - 17 MiB that only a notifier needs

        return ThreadLoops(self.loaded.notification)

    def _boot(self) -> None:
        """Open what the fork must not share; every problem is logged in one line and ends the process."""
        address, host, port = self._address
        log.info("starting secrets-bridge worker", version=__version__, local_addr=f"{host}:{port}")
        try:
            file_limit.ensure(self._files)
            self._check_servers()
        except (BootError, SchemaError) as error:
            self._fail(str(error), error.sql if isinstance(error, SchemaError) else "")
        self._start_tracing()
        self.pool.open()
        self._preset()
        collectors: list[Collector] = []
        shows_replica = this_replica() is not None and self.role.kind is Kind.WORKER
        if self.role.notifies or shows_replica:
            collectors.append(NotificationCollector(self.pool, list(self.router.targets)))
        if self.role.notifies:
            metrics.relay_last_success()
            try:
                self._loops  # noqa: B018 - loaded now, not under the first deadline
            except ValueError as error:  # the one setting that only TLS itself can judge
                refuse(ConfigError([str(error)]))
        threads.start("signs-of-life", self.signs_of_life.keep)
        if self.role.first:
            if SWEEP_QUEUE in self.role.queues:
                watch = self._fleet_watch()
                collectors.append(FleetGauges(watch))
                threads.start("fleet-watch", watch.watch)
            shown = shows_replica or this_replica() is None
            try:
                exposition = Exposition(self.shared_values, collectors) if shown else None
                probes.serve((host, port), self._probes(exposition))
            except OSError:
                self._fail(f"{address}: {host}:{port} cannot be listened on; is it taken?")

    def _probes(self, exposition: Exposition | None) -> Probes:
        """Return what the probes' address answers: the page is the worker's, a notifier says so."""
        page = self.loaded.worker.page == "on"
        site = self._site if page and self.role.kind is Kind.WORKER else None
        return Probes(self.readiness, exposition, site, page_elsewhere=page and site is None)

    @property
    def _site(self) -> Site:
        deployment = self.loaded.notification.deployment
        asked = Asked(
            pairs=self.pairs,
            targets=list(self.router.targets),
            namespace=self.loaded.redis.namespace,
            most_pages=self.loaded.worker.pages,
            deployment=deployment,
        )
        return Site(
            deployment,
            list(config.rows(*self.groups)),
            lambda: deployment_overview.read(self.pool, self.client, asked),
            lambda: self.readiness.state,
        )

    def _fleet_watch(self) -> FleetWatch:
        return FleetWatch(
            self.pool,
            self.client,
            self.watched,
            [pair for pair in self.pairs if pair[1].enabled],
            namespace=self.loaded.redis.namespace,
            retention=self.loaded.worker.ledger_retention,
        )

    def _end(self) -> None:
        self.signs_of_life.end()

    def _preset(self) -> None:
        """Create every series that this process may count in."""
        for name in self.registered:
            metrics.preset(name)
        metrics.preset_messages(self.role.queues, Fault)
        for target in self.loaded.targets:
            metrics.preset_sink(target.sink.name)
        if self.loaded.heartbeat.enabled and self.role.notifies:
            metrics.preset_heartbeat()
        metrics.preset_process()
        metrics.BUILD_INFO.labels(__version__).set(1)

    def _fail(self, problem: str, remedy: str = "") -> NoReturn:
        """Log what keeps this process from its work, once for all siblings, and exit with status 1."""
        if self.role.first:
            log.error("boot failed", error=problem)
            if remedy:
                Output(sys.__stderr__ or sys.stderr).write(f"{remedy}\n")
        sys.exit(1)

    @property
    def _address(self) -> tuple[str, str, int]:
        """Where this process serves its probes, after the variable's name: one that only notifies has its own."""
        if self.role.kind is Kind.NOTIFIER:
            return "SB_NOTIFICATION_LOCAL_ADDR", *self.loaded.notification.local_address
        return "SB_WORKER_LOCAL_ADDR", *self.loaded.worker.local_address

    @property
    def _files(self) -> int:
        """How many files this process may have open at a time."""
        gitops = any(isinstance(settings, GitopsSettings) and settings.enabled for settings in self.loaded.sweepers)
        return file_limit.needed(self.role, database_connections=self.pool.max_size, gitops=gitops)

    def _check_servers(self) -> None:
        try:
            self.client.ping()
            check_shards(self.client)
        except redis.RedisError as error:
            raise BootError(f"REDIS_URL: Redis cannot be used: {explain(error)}") from None
        with postgres.connect(self.loaded.database) as connection:
            migrations.migrate(connection)
            if self.role.first and SWEEP_QUEUE in self.role.queues:
                self._tell_unserved(unserved(connection, self.pairs))

    def _tell_unserved(self, found: Unserved) -> None:
        """Log in one line what of the api is not served, if there is anything."""
        newer = {"schema": found.version, "known_schema": KNOWN_SCHEMA} if found.version else {}
        off = {"off": [f"{name} ({switch})" for name, switch in found.off.items()]} if found.off else {}
        if newer or off:
            log.warning("the api has features that this worker does not serve", **newer, **off)

    @cached_property
    def _redis_check(self) -> Check:
        return redis_check(self.client, self.loaded.redis.namespace, self.broker.namespace)

    def _check_redis(self) -> Unready | None:
        self.broker.check()
        return self._redis_check()
