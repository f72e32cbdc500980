"""The page over HTTP: its headers, its methods, who is asked how often, and a real worker with and without servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import redis as redis_py

from app.demo.servers import Postgres
from app.overview.model import Overview
from app.worker import probes as probes_module
from app.worker.probes import Probes
from app.worker.readiness import Readiness
from tests.page import samples
from tests.page.conftest import answering, probes
from tests.support.processes import PATIENT, QUICK, SCHEDULER, WORKER, Process, environment
from tests.support.waiting import HUNG, eventually

PATHS = ("/", "/still", "/configuration", "/status.json")


def get(url: str, method: str = "GET") -> httpx.Response:
    return httpx.request(method, url, timeout=HUNG, trust_env=False)


def test_a_browser_is_told_to_load_nothing_to_keep_nothing_and_to_run_nothing() -> None:
    with answering(probes(samples.fine)) as address:
        for path in PATHS:
            headers = get(address + path).headers
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; style-src 'sha256-")
            assert "unsafe" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cache-control"] == "no-store"
        assert get(address + "/").headers["content-type"] == "text/html; charset=utf-8"
        assert get(address + "/status.json").json()["deployment"] == "prod-eu"


def test_it_can_only_be_read() -> None:
    with answering(probes(samples.fine)) as address:
        for path in PATHS:
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "FOO"):
                answer = get(address + path, method)
                assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
            head, whole = get(address + path, "HEAD"), get(address + path)
            assert (head.status_code, head.content) == (200, b"")
            assert abs(int(head.headers["content-length"]) - len(whole.content)) < 200


def test_many_who_look_cost_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_module, "PAGE_FRESH_SECONDS", 3600.0)
    read: list[int] = []
    let_go = threading.Event()

    def reading() -> Overview:
        read.append(threading.get_ident())
        assert let_go.wait(HUNG)
        return samples.fine()

    with answering(probes(reading)) as address, ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(get, address + PATHS[at % len(PATHS)]) for at in range(16)]
        eventually(lambda: read)
        assert get(address + "/healthz").status_code == 200  # answered by the thread of the probes meanwhile
        let_go.set()
        assert {answer.result(HUNG).status_code for answer in answers} == {200}
        assert get(address + "/").status_code == 200  # by what was read just now
    assert len(read) == 1


def test_a_reading_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_module, "PAGE_SECONDS", 0.1)
    let_go = threading.Event()

    def reading() -> Overview:
        let_go.wait(HUNG)
        return samples.fine()

    with answering(probes(reading)) as address:
        answer = get(address + "/")
        assert answer.status_code == 200
        assert "does not answer in time" in answer.text
        assert get(address + "/status.json").status_code == 503
        let_go.set()


def test_a_page_that_cannot_be_made_costs_no_probe() -> None:
    def reading() -> Overview:
        return None  # type: ignore[return-value]

    with answering(probes(reading)) as address:
        assert get(address + "/").status_code == 500
        assert get(address + "/healthz").status_code == 200


@pytest.mark.parametrize(("elsewhere", "said"), [(False, "not found"), (True, "served by the worker")])
def test_without_a_page_its_addresses_are_not_found(elsewhere: bool, said: str) -> None:
    with answering(Probes(Readiness({}), page_elsewhere=elsewhere)) as address:
        for path in PATHS:
            answer = get(address + path)
            assert answer.status_code == 404
            assert said in answer.text


@pytest.fixture
def worker(
    database: str, redis: redis_py.Redis, redis_server: object, tmp_path: Path
) -> Iterator[Callable[..., Process]]:
    """Return a function that starts a worker on fresh servers."""
    started: list[Process] = []

    def start(*words: str, **settings: str) -> Process:
        env = environment(database, redis_server.url(), **{**QUICK, **PATIENT, **settings})  # type: ignore[attr-defined]
        started.append(Process(words or WORKER, env, tmp_path / f"{len(started)}.log"))
        return started[-1]

    yield start
    for process in started:
        process.__exit__(None)


def test_a_real_worker_shows_what_it_has_swept(worker: Callable[..., Process]) -> None:
    url = {"SB_NOTIFICATION_WEBHOOK_URL": "http://127.0.0.1:9/secret-path"}
    process = worker(**url, SB_NOTIFICATION_ALLOWED_NETWORKS="127.0.0.0/8").ready()
    worker(*SCHEDULER)

    def swept() -> bool:
        sweepers = process.get("/status.json").json()["sweepers"]
        return any(run["outcome"] == "success" for view in sweepers for run in view["runs"])

    eventually(swept)
    page = process.get("/")
    assert page.status_code == 200
    assert "wraps-expired" in page.text
    assert "success" in page.text
    assert "SB_NOTIFICATION_WEBHOOK_URL" in page.text
    for path in PATHS:
        assert "secret-path" not in process.get(path).text
        assert process.get(path).status_code == 200


def test_it_is_off_where_that_is_set_and_a_wrong_word_stops_the_boot(worker: Callable[..., Process]) -> None:
    process = worker(SB_WORKER_PAGE="off").ready()
    assert [process.get(path).status_code for path in PATHS] == [404] * 4
    assert process.get("/metrics").status_code == 200
    wrong = worker(SB_WORKER_PAGE="maybe")
    assert wrong.popen.wait(HUNG) == 1
    assert "SB_WORKER_PAGE: not a switch; accepted: on, off" in wrong.text


def test_a_notifier_says_who_has_the_page(worker: Callable[..., Process]) -> None:
    process = worker(*WORKER, "--queues", "sinks").ready()
    answer = process.get("/")
    assert (answer.status_code, answer.json()["status"]) == (404, "served by the worker of this replica")


def test_it_is_there_while_postgresql_is_away(
    tmp_path: Path, redis: redis_py.Redis, redis_server: object, postgres: Postgres
) -> None:
    """Its own PostgreSQL, which is stopped under it."""
    del postgres
    with Postgres(tmp_path) as own:
        env = environment(own.url("postgres"), redis_server.url(), **{**QUICK, **PATIENT})  # type: ignore[attr-defined]
        with Process(WORKER, env, tmp_path / "worker.log") as process:
            process.ready()
            eventually(lambda: process.get("/status.json").json()["current"])
            own.stop()
            eventually(
                lambda: "PostgreSQL" in process.get("/").text and "What is below is as it was" in process.get("/").text
            )
            assert process.get("/").status_code == 200
            assert process.get("/healthz").status_code == 200
