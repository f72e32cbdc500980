"""A backlog of a million wraps, half of them expired: how fast, and how much it is in the way.

    python -m bench.backlog [rows]

The sweep as the worker does it, with a client that keeps updating doomed rows; then one plain DELETE of as many
rows, with the same client. PostgreSQL runs with its durable defaults.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection
from psycopg_pool import ConnectionPool

from actors.wraps_expired import WrapsExpired, wraps_expired
from app.demo.servers import Postgres
from app.notify.outbox import Outbox
from app.notify.routing import Router
from app.storage import migrations
from app.sweeping.lock import Lease, Tick
from app.sweeping.runner import Runner
from app.sweeping.scans.batch_size import AIM
from bench.arguments import numbers

FILL = """
INSERT INTO secret_wraps (request_id, encrypted_value, nonce, data_key_ciphertext, kms_key_id, content_hash,
                          byte_length, expires_at, consumed_at, consumed_by_user)
SELECT NULL, decode(repeat(md5(n::text), 4), 'hex'), decode(md5(n::text), 'hex'),
       decode(repeat(md5(n::text), 3), 'hex'),
       'local:bench', decode(repeat(md5(n::text), 2), 'hex'), 64,
       now() + CASE WHEN n %% 2 = 0 THEN interval '-1 hour' ELSE interval '7 days' END,
       CASE WHEN n %% 3 = 0 THEN now() - interval '2 hours' END, CASE WHEN n %% 3 = 0 THEN 'someone' END
  FROM generate_series(1, %(rows)s) AS n
"""
DOOMED = "SELECT id FROM secret_wraps WHERE expires_at <= now() AND consumed_at IS NULL ORDER BY random() LIMIT 20000"
TOUCH = "UPDATE secret_wraps SET byte_length = byte_length WHERE id = %s"


class Client(threading.Thread):
    """Updates random doomed rows, one after the other, and keeps the time each one took."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.waits, self.go = url, [], threading.Event()  # type: ignore[var-annotated]
        self.ready, self.stop = threading.Event(), threading.Event()

    def run(self) -> None:
        """Update until `stop` is set."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            ids = [row[0] for row in connection.execute(DOOMED)]
            self.ready.set()
            self.go.wait()
            for key in ids:
                if self.stop.is_set():
                    break
                started = time.perf_counter()
                connection.execute(TOUCH, [key])
                self.waits.append(time.perf_counter() - started)
                time.sleep(0.001)


def fill(url: str, rows: int) -> None:
    """Replace the backlog by a new one of so many rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("TRUNCATE secret_wraps")
        connection.execute(FILL, {"rows": rows})
        connection.execute("VACUUM ANALYZE secret_wraps")
        connection.execute("CHECKPOINT")


def with_client(url: str, work: Any) -> tuple[float, list[float]]:
    """Do the work while a client updates doomed rows; return its duration and the client's waits, in seconds."""
    client = Client(url)
    client.start()
    client.ready.wait()
    client.go.set()
    time.sleep(0.2)
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    client.stop.set()
    client.join()
    return seconds, client.waits


def sweep(url: str, batches: list[float]) -> None:
    """Run the sweeper once, as the worker does."""
    tick = Tick(Lease("wraps-expired", "bench", time.monotonic(), timedelta(hours=1)), timedelta(seconds=60))
    settings = WrapsExpired(interval=timedelta(seconds=60))
    with ConnectionPool[Connection[Any]](url, kwargs={"autocommit": True}, min_size=1, max_size=2) as pool:
        runner = Runner(pool, "bench", timedelta(seconds=15), timedelta(days=7), Outbox(Router([]), lambda _id: None))
        runner.on_batch = batches.append
        runner.run(wraps_expired, settings, tick)


def percentile(values: list[float], share: float) -> float:
    """Return the value below which that share of the values, in seconds, lies; in milliseconds."""
    return round(sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1000, 1) if values else 0.0


def main() -> None:
    """Print one JSON object for the sweep and one for the plain DELETE."""
    (rows,) = numbers(__doc__, rows=1_000_000)
    with tempfile.TemporaryDirectory() as directory, Postgres(Path(directory), durable=True) as server:
        url = server.url()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(Path("app/demo/control_plane.sql").read_bytes())
            migrations.migrate(connection)
        for way in ("sweep", "one DELETE"):
            fill(url, rows)
            batches: list[float] = []
            if way == "sweep":
                seconds, waits = with_client(url, partial(sweep, url, batches))
            else:
                with psycopg.connect(url, autocommit=True) as connection:
                    seconds, waits = with_client(
                        url,
                        lambda c=connection: c.execute("DELETE FROM secret_wraps WHERE expires_at <= now()"),
                    )
                batches = [seconds]
            with psycopg.connect(url) as connection:
                expired = connection.execute("SELECT count(*) FROM secret_wraps WHERE expires_at <= now()").fetchone()
            report = {
                "way": way,
                "rows_per_second": round(rows / 2 / seconds),
                "seconds": round(seconds, 2),
                "expired_left": expired[0] if expired else None,
                "transactions": len(batches),
                "longest_transaction_ms": percentile(batches, 1.0),
                "p50_transaction_ms": round(statistics.median(batches) * 1000, 1),
                "aim_ms": AIM * 1000,
                "client_updates": len(waits),
                "client_p50_ms": percentile(waits, 0.5),
                "client_p99_ms": percentile(waits, 0.99),
                "client_max_ms": percentile(waits, 1.0),
            }
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
