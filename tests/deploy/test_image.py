"""The Dockerfile's own instructions, run without an engine, and a container of what they make."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from psycopg import Connection

from app.demo.ports import reserved_port
from app.demo.servers import Redis
from tests.deploy.container import Container
from tests.deploy.dockerfile import Context, stages
from tests.deploy.image import Built, build
from tests.deploy.kustomize import pods
from tests.deploy.memory import limited
from tests.deploy.namespaces import MountNamespace
from tests.support.processes import QUICK, ROOT
from tests.support.rows import FIXED, column, insert_agent, insert_wrap
from tests.support.waiting import eventually

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
FINAL = stages(DOCKERFILE)[-1]
HEALTH = json.loads(FINAL.last("HEALTHCHECK").text.removeprefix("CMD "))
#: What docs/deploying.md and the manifests give a container.
LIMIT = 256 * 2**20
#: Every file that is ours, by its contents.
CONTENTS = (
    "cd {root} && find venv worker usr/local/lib/python3* -type f | LC_ALL=C sort | tr '\\n' '\\0' | xargs -0 sha256sum"
)
#: A pyc's flags say how it is checked: 1 is by its source's hash, and never looked at.
UNCHECKED = b"\x01\x00\x00\x00"


SEPARATE = pods(ROOT / "deploy" / "kubernetes" / "overlays" / "separate")


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountNamespace]:
    with MountNamespace(tmp_path_factory.mktemp("image")) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def image(space: MountNamespace) -> Built:
    return build(space, Context(ROOT), DOCKERFILE)


def test_there_is_one_base_image_and_its_digest_is_looked_up_or_absent() -> None:
    sources = [stage.source for stage in stages(DOCKERFILE)]
    assert sources[1:] == ["base", "base", "scratch"]
    assert re.fullmatch(r"python:3\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", sources[0])


def test_the_image_says_what_it_is_and_how_it_is_run() -> None:
    labels = FINAL.merged("LABEL")
    titled = {name.removeprefix("org.opencontainers.image.") for name in labels}
    assert titled == {"title", "description", "licenses", "version", "revision"}
    assert (FINAL.last("USER").text, FINAL.last("EXPOSE").text) == ("65532:65532", "8091")
    assert FINAL.merged("ENV")["SB_WORKER_LOCAL_ADDR"] == "0.0.0.0:8091"


def test_only_what_runs_is_sent_to_the_builder() -> None:
    context = Context(ROOT)
    sent = {path.as_posix() for source in (".", "app") for path in context.files(source)}
    assert {path.partition("/")[0] for path in sent} == {"Procfile", "requirements", "app", "actors", "sinks"}
    assert {path for path in sent if path.startswith("requirements/")} == {"requirements/run.txt"}
    assert not [path for path in sent if "__pycache__" in path or path.startswith("app/demo/")]
    assert "app/core/role.py" in sent


def test_the_image_has_what_runs_and_nothing_that_installs(space: MountNamespace, image: Built) -> None:
    programs = space.run(["sh", "-c", f"ls {image.root}/usr/local/bin {image.root}/venv/bin"]).split()
    assert {"python", "sb-worker", "dramatiq", "periodiq"} <= set(programs)
    assert not [name for name in programs if name.startswith(("pip", "wheel", "idle", "easy_install"))]
    for module in ("pip", "setuptools", "ensurepip", "app.demo"):
        words = ("chroot", image.root, "env", "PYTHONPATH=/worker", "/venv/bin/python", "-c")
        probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is not None)"
        space.run([*words, probe])


def test_bytecode_holds_no_time_and_each_build_makes_the_same_files(space: MountNamespace, image: Built) -> None:
    compiled = [path for folder in ("worker", "venv") for path in space.seen(image.root / folder).rglob("*.pyc")]
    assert len(compiled) > 500
    assert {path.read_bytes()[4:8] for path in compiled} == {UNCHECKED}
    again = build(space, Context(ROOT), DOCKERFILE)
    contents = [space.run(["sh", "-c", CONTENTS.format(root=one.root)]) for one in (image, again)]
    assert contents[0] == contents[1]


def test_a_container_sweeps_within_its_limits_and_ends_by_sigterm(  # noqa: PLR0913, PLR0917 - fixtures
    space: MountNamespace,
    image: Built,
    database: str,
    redis: redis_py.Redis,
    redis_server: Redis,
    sql: Connection[Any],
    tmp_path: Path,
) -> None:
    insert_agent(sql, "silent", last_seen_at=FIXED)
    insert_wrap(sql, FIXED)
    with reserved_port() as port, reserved_port() as other, limited(LIMIT) as limit:
        env = {
            "DATABASE_URL": database,
            "REDIS_URL": redis_server.url(),
            "SB_WORKER_LOCAL_ADDR": f"127.0.0.1:{port}",
            "SB_NOTIFICATION_LOCAL_ADDR": f"127.0.0.1:{other}",
            **QUICK,
        }
        with Container(space, image, env, tmp_path / "container.log", limit=limit) as container:
            container.port = port
            container.ready()
            eventually(lambda: column(sql, "SELECT status FROM agents") == ["stale"])
            eventually(lambda: column(sql, "SELECT count(*) FROM secret_wraps") == [0])
            assert container.main.uids().real == 65532
            assert container.execute(HEALTH) == 0
            assert container.execute([*HEALTH, "127.0.0.1:1"]) == 1
            for place in ("/", "/worker", "/venv", "/tmp", "/usr/local", "/var/tmp"):
                assert container.execute(["touch", f"{place}/x"]) != 0, place
            assert container.execute(["touch", "/dev/shm/x"]) == 0
            assert 0 < container.metric("process_resident_memory_bytes") < LIMIT
            assert container.stop() == 0
        assert limit is None or limit.kills == 0
    assert "ERROR" not in container.text
    assert "Traceback" not in container.text


@pytest.mark.parametrize("component", SEPARATE)
def test_each_process_may_be_process_1_within_what_its_manifest_gives_it(  # noqa: PLR0913, PLR0917 - fixtures
    component: str,
    space: MountNamespace,
    image: Built,
    database: str,
    redis: redis_py.Redis,
    redis_server: Redis,
    tmp_path: Path,
) -> None:
    """The kernel keeps signals from process 1 that it has no handler for."""
    (pod,) = SEPARATE[component]["containers"]
    most = int(pod["resources"]["limits"]["memory"].removesuffix("Mi")) * 2**20
    with reserved_port() as port, limited(most) as limit:
        place = f"127.0.0.1:{port}"
        env = {"DATABASE_URL": database, "REDIS_URL": redis_server.url(), **QUICK}
        env |= {"SB_WORKER_LOCAL_ADDR": place, "SB_NOTIFICATION_LOCAL_ADDR": place}
        words = [*pod["command"], *pod["args"]]
        with Container(space, image, env, tmp_path / "log", limit=limit, words=words) as container:
            container.port = port
            if component == "scheduler":
                eventually(lambda: redis.llen("dramatiq:sweeps") > 0)
            else:
                container.ready()
            assert container.stop() == 0
        assert limit is None or limit.kills == 0
    assert "Traceback" not in container.text
