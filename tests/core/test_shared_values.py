"""Numbers in shared files: read back by prometheus_client, apart from strangers', and without room."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import resource
import secrets
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector
from structlog.testing import capture_logs

from app.core import shared_values
from app.core.shared_values import SharedValues, join


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedValues]:
    """Return the numbers of this process, and have metrics use them."""
    numbers = SharedValues(join(tmp_path))
    monkeypatch.setattr(values, "ValueClass", numbers.value)
    yield numbers
    numbers.close()


def text(shared: SharedValues) -> str:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(shared.directory))  # type: ignore[no-untyped-call]
    return generate_latest(registry).decode()


def family(seed: bytes, parent: str) -> str:
    """Join as a child of another main process, which drew another key, and die."""
    multiprocessing.current_process().authkey = seed
    return str(join(Path(parent)))


def test_what_is_counted_is_what_is_read(shared: SharedValues) -> None:
    registry = CollectorRegistry()
    counter = Counter("runs", "Runs.", ["task", "of"], registry=registry)
    gauge = Gauge("newest", "Newest.", ["task"], registry=registry, multiprocess_mode="mostrecent")
    histogram = Histogram("seconds", "Seconds.", ["task"], registry=registry, buckets=(1, 10))
    for task in map(str, range(300)):  # more than a page of keys
        counter.labels(task, "ü").inc(2.5)
        gauge.labels(task).set(7)
        histogram.labels(task).observe(5)
    told = text(shared).splitlines()
    for task in ("0", "150", "299"):
        assert f'runs_total{{of="ü",task="{task}"}} 2.5' in told
        assert f'newest{{task="{task}"}} 7.0' in told
        assert f'seconds_bucket{{le="1.0",task="{task}"}} 0.0' in told
        assert f'seconds_bucket{{le="10.0",task="{task}"}} 1.0' in told
    assert not shared.incomplete


def test_children_of_one_main_process_share_and_others_do_not(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as children:
        names = {children.submit(join, tmp_path).result() for _ in range(4)}
        assert names == {join(tmp_path)}
    seed = secrets.token_bytes(32)
    with ProcessPoolExecutor(1, mp_context=spawn) as stranger:
        assert stranger.submit(family, seed, str(tmp_path)).result() not in map(str, names)


def test_a_directory_lives_as_long_as_one_that_uses_it_whatever_its_process_ids(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as stranger:
        theirs = Path(stranger.submit(family, b"a" * 32, str(tmp_path)).result())
        assert join(tmp_path) != theirs
        assert theirs.is_dir()  # it is alive, and nobody asked for its process id
    abandoned = os.open(theirs, os.O_RDONLY)
    fcntl.flock(abandoned, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its death has unlocked it
    os.close(abandoned)
    join(tmp_path)
    assert not theirs.exists()


def test_one_that_was_removed_while_it_was_joined_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, removed = shared_values._lock, list[Path]()

    def late(path: Path, how: int) -> int:
        descriptor = lock(path, how)
        if how == fcntl.LOCK_SH and not removed:
            removed.append(path)
            path.rmdir()
        return descriptor

    monkeypatch.setattr(shared_values, "_lock", late)
    assert join(tmp_path).is_dir()
    assert removed


@contextmanager
def room(size: int) -> Iterator[list[Any]]:
    """Let no file of this process grow beyond so many bytes; yield what is logged meanwhile."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with capture_logs() as logs:
            yield logs
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_without_room_numbers_go_on_in_memory_and_that_is_told_once(shared: SharedValues) -> None:
    registry = CollectorRegistry()
    counter = Counter("runs", "Runs.", ["task"], registry=registry)
    counter.labels("first").inc()
    with room(4096) as logs:
        for number in range(100):
            counter.labels(str(number)).inc(3)
        counter.labels("first").inc()
    assert shared.incomplete
    assert 'runs_total{task="99"} 3.0' in generate_latest(registry).decode()
    told = text(shared)
    assert 'runs_total{task="first"} 2.0' in told
    assert 'runs_total{task="99"}' not in told
    assert [one["log_level"] for one in logs] == ["warning"]


def test_a_file_for_which_there_is_no_room_leaves_no_descriptor_open(shared: SharedValues) -> None:
    """Each series tries it anew."""
    counter = Counter("runs", "Runs.", ["task"], registry=CollectorRegistry())
    before = len(list(Path("/dev/fd").iterdir()))
    with room(4):
        for number in range(10):
            counter.labels(str(number)).inc()
    assert shared.incomplete
    assert len(list(Path("/dev/fd").iterdir())) == before
