"""A Go worker's deployment is replaced replica by replica, and taken back: nothing is done twice, nothing rests."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis as redis_py
from psycopg import Connection

from tests.support.go_replica import GoReplica, Held
from tests.support.processes import PATIENT, QUICK, SCHEDULER, WORKER, Process, environment
from tests.support.rights.acl import GrantedRedis
from tests.support.rows import FIXED, column, insert_agent, insert_job, insert_secret, insert_wrap, rows
from tests.support.waiting import eventually

LEFT = """
SELECT (SELECT count(*) FROM secret_wraps) + (SELECT count(*) FROM secrets WHERE status = 'present')
     + (SELECT count(*) FROM agents WHERE status = 'active') + (SELECT count(*) FROM sync_jobs WHERE status = 'claimed')
"""
OURS = """
SELECT name, started_at AS since, finished_at AS until, changed FROM secrets_bridge_worker.sweep_run
 WHERE outcome = 'success' ORDER BY id
"""


def test_both_work_side_by_side_on_the_way_there_and_back(  # noqa: PLR0913, PLR0917 - fixtures
    database: str,
    owner_database: str,
    redis_server: GrantedRedis,
    redis: redis_py.Redis,
    tmp_path: Path,
    sql: Connection[Any],
) -> None:
    env = environment(database, redis_server.url(), **QUICK | PATIENT)
    inserted = 0
    theirs: list[GoReplica] = []

    def go(stack: ExitStack) -> None:
        theirs.append(stack.enter_context(GoReplica(owner_database, redis_server.owner_url(), every=0.3)))

    def ours(stack: ExitStack, name: str) -> None:
        for words in (WORKER, SCHEDULER):
            process = stack.enter_context(Process(words, env, tmp_path / f"{name}-{words[0]}.log"))
            if words is WORKER:
                process.ready()
            stack.callback(process.end)

    def work_goes_on() -> None:
        nonlocal inserted
        for _ in range(3):
            insert_wrap(sql, FIXED)
            insert_secret(sql, f"ref-{inserted}", FIXED)
            insert_agent(sql, f"agent-{inserted}", last_seen_at=FIXED)
            insert_job(sql, claim_expires_at=FIXED)
            inserted += 4
            eventually(lambda: column(sql, LEFT) == [0])

    with ExitStack() as first, ExitStack() as second, ExitStack() as third:
        go(first)
        go(second)
        work_goes_on()
        first.close()  # a rolling update: one of theirs goes, one of ours comes
        ours(third, "one")
        work_goes_on()
        second.close()
        work_goes_on()  # by ours alone
        ran = rows(sql, OURS)
        assert ran
        with ExitStack() as back:
            go(back)
            work_goes_on()
            third.close()
            work_goes_on()  # by theirs alone

    held = [run for replica in theirs for run in replica.held] + [Held(**run) for run in rows(sql, OURS)]
    assert sum(run.changed for run in held) == inserted
    for name in {run.name for run in held}:
        runs = sorted((run for run in held if run.name == name), key=lambda run: run.since)
        assert all(before.until <= after.since for before, after in pairwise(runs)), name
    assert redis.keys("secrets-bridge:lock:*") == []
