"""All who read our own rows: the page, its JSON, commands, gauges, the checker, sweeps and notifiers."""

from __future__ import annotations

import io
import json
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, Self

from structlog.testing import capture_logs

from actors import SWEEPERS
from app.cli.history import verify, why
from app.cli.history.runs import as_json, table
from app.cli.overview import screen
from app.cli.terminal import Terminal
from app.core import config
from app.core.errors import NotDue, SweepFailed
from app.notify import dead_letters
from app.notify.dead_letters import DeliveryFilter
from app.notify.heartbeat import beat
from app.notify.routing import targets
from app.overview.gauges import FleetGauges
from app.overview.history import verifying
from app.overview.history.recent import recent
from app.overview.history.transaction import looking_back
from app.overview.sources.standings import Watched
from app.overview.views import Asked
from app.overview.watch import FleetWatch
from app.page.site import PATHS, Site
from app.storage.postgres import pool as open_pool
from app.storage.redis import connect
from app.sweeping.lock import Tick
from app.worker.deployment_overview import read as read_overview
from app.worker.loading import groups, load
from sinks import SINKS
from tests.support.notifier_harness import NotifierHarness
from tests.support.replica import Replica
from tests.support.waiting import HUNG

#: The sweeper whose rows are odd, and one whose rows are not.
ODD, GOOD = "wraps-expired", "agents-stale"
_WEEK = timedelta(days=7)
_FAULTS = (
    *("deployment not looked at; its gauges grow old", "overview not read", "page cannot be shown"),
    *("relay put off, PostgreSQL is away", "heartbeat put off, PostgreSQL is away"),
)


class Readers:
    """What each of them shows of the good rows is checked."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._loaded = loaded = load(SWEEPERS, SINKS)
        self._redis = connect(loaded.redis, answer_within=timedelta(seconds=HUNG))
        self._stack.callback(self._redis.close)
        self._pool = open_pool(loaded.database)
        self._stack.enter_context(self._pool)
        self._pairs = tuple(zip(SWEEPERS, loaded.sweepers, strict=True))
        names = tuple(target.name for target in loaded.targets)
        asked = Asked(pairs=self._pairs, targets=names, namespace=loaded.redis.namespace, most_pages=1000)
        self._overview = lambda: read_overview(self._pool, self._redis, asked)
        self._site = Site("test", list(config.rows(*groups(SWEEPERS, SINKS))), self._overview, lambda: "ready")
        receivers = [
            target for target in targets(SINKS, [sink.settings.read() for sink in SINKS]) if target.name != "noop"
        ]
        self._notifier = self._stack.enter_context(NotifierHarness(self._pool, receivers))
        self._replica = self._stack.enter_context(Replica(self._pool, self._redis, lease=timedelta(minutes=1)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self) -> None:
        """Have everybody read, then sweep, then have them read again."""
        self._redis.flushall()
        with capture_logs() as logs:
            self._page()
            self._gauges()
            self._history(swept=False)
            self._notify()
            self._sweep()
            self._history(swept=True)
        assert not [log for log in logs if log["event"] in _FAULTS], logs

    def _page(self) -> None:
        overview = self._overview()  # type: ignore[no-untyped-call]
        assert not overview.unread, overview.problems
        (good,) = [view for view in overview.sweepers if view.name == GOOD]
        assert [run.changed for run in good.runs] == [3]
        assert "good" in {process.host for process in overview.processes}
        assert {"webhook", "teams"} <= {view.name for view in overview.sinks}
        shown = self._site.make()
        assert shown.current
        json.loads(shown.json)
        for path in PATHS:
            assert self._site.reply(path, shown)[2] == 200
        _printed(screen.whole(overview, 120), screen.whole(overview, 250, wide=True), screen.fitted(overview, 80, 24))

    def _gauges(self) -> None:
        watched = [
            Watched(sweeper.name, "secret_wraps", own.tick)
            for sweeper, own in self._pairs
            if sweeper.name in (ODD, GOOD)
        ]
        watch = FleetWatch(self._pool, self._redis, watched, namespace="secrets-bridge", retention=_WEEK)
        watch.look()
        found = {
            one.name: {next(iter(each.labels.values()), ""): each.value for each in one.samples}
            for one in FleetGauges(watch).collect()
        }
        assert found["worker_sweep_last_success_timestamp_seconds"][GOOD] > 0
        assert 3000 < found["worker_sweep_overdue_seconds"][GOOD] < 8000
        assert found["worker_processes_alive"]["worker"] >= 1
        assert found["worker_scheduler_tick_age_seconds"][""] < 3600

    def _history(self, *, swept: bool) -> None:
        known = verifying.Known({ODD: _MINUTE, GOOD: _MINUTE}, lambda _: True, timedelta(seconds=4), lambda _: False)
        with self._pool.connection() as connection, looking_back(connection) as cursor:
            rows = recent(cursor, None, window=None, failed=False, most=100)
            assert [row.changed for row in rows if row.name == GOOD] == ([0, 3] if swept else [3])
            for row in rows:
                json.dumps(as_json(row), allow_nan=False)
            _printed(table(rows, 80), table(rows, None))
            found = {each.name: each for each in verifying.verify(cursor, known, timedelta(hours=24))}
            assert found[GOOD].kept == []
            _printed(*verify._lines(found.values()), verify._verdict(list(found.values()), _WEEK))
            for findings in found.values():
                json.dumps(findings.as_json())
            ran = min(row.slot for row in rows if row.name == GOOD).isoformat()
            for name in (ODD, GOOD):
                for when in (None, ran, "50m"):
                    answer, facts = why._explain(cursor, self._loaded, name, when, {})
                    json.dumps(why._as_json(answer, facts, []), allow_nan=False)
                    assert all(line.isprintable() for line in why._lines(answer, []))
                    assert (name, when) != (GOOD, ran) or answer.kind == "ran"

    def _notify(self) -> None:
        with self._pool.connection() as connection:
            for row in dead_letters.find(connection, DeliveryFilter()):
                json.dumps(row, default=str)
            dead_letters.targets(connection)
            dead_letters.sums(connection)
            with connection.transaction():
                connection.execute(beat.NEWEST, {"sweepers": [GOOD], "longest": beat.LONGEST_RUN, "fresh": beat.FRESH})
            (number,) = connection.execute(_GOOD_DELIVERY).fetchone() or (0,)
        assert self._notifier.notifier.relay()
        batch = self._notifier.claim(number)
        assert batch is not None
        assert batch.target.name == "teams"

    def _sweep(self) -> None:
        for sweeper, own in self._pairs:
            if sweeper.name in (ODD, GOOD):
                tick = self._replica.acquire(sweeper, own)
                assert isinstance(tick, Tick)
                try:
                    self._replica.runner.run(sweeper, own, tick)
                except NotDue:
                    assert sweeper.name == ODD
                except SweepFailed as error:  # a fencing token that cannot grow lets nothing be claimed
                    assert (sweeper.name, error.failure.sqlstate) == (ODD, "22003")
                finally:
                    self._replica.locks.release(tick, done=False)


_MINUTE = timedelta(minutes=1)
_GOOD_DELIVERY = """
SELECT max(delivery.id) FROM secrets_bridge_worker.notification_delivery AS delivery
 WHERE target = 'teams' AND event_id = '00000000-0000-0000-0000-00000000000a'
"""


def _printed(*shown: Any) -> None:
    """Print it as a terminal would be given it: nothing that was read may steer that."""
    output = io.StringIO()
    Terminal(file=output, width=200).print(*shown)
    assert not [character for character in output.getvalue() if character < " " and character != "\n"]
