"""deploy/compose.yaml and what it mounts: valid, hardened, in accord with the image."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import __version__
from tests.deploy.dockerfile import stages
from tests.support.packages import missing
from tests.support.processes import ROOT

FILE = ROOT / "deploy" / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
IMAGE = stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))[-1]
EXACT = re.compile(r"[\w/.-]+:v?\d+\.\d+(\.\d+)?(@sha256:[0-9a-f]{64})?")

every_service = pytest.mark.parametrize("name", SERVICES)


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / "deploy" / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("schema", "path"), [("compose-spec", "deploy/compose.yaml"), ("renovate", "renovate.json")])
def test_files_are_what_the_published_schemas_allow(schema: str, path: str) -> None:
    tool = Path(sys.executable).parent / "check-jsonschema"
    if not tool.exists():
        missing("check-jsonschema")
    words = (tool, "--builtin-schema", f"vendor.{schema}", ROOT / path)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_compose_itself_takes_it() -> None:
    docker = shutil.which("docker")
    words = [docker or "", "compose", "--file", str(FILE), "config", "--quiet"]
    env = {**os.environ, "POSTGRES_PASSWORD": "of-the-test", "GRAFANA_PASSWORD": "of-the-test"}
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("needs Docker's plugin compose; no engine")
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@every_service
def test_no_service_is_root_or_writes_where_it_need_not(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] not in {"root", "0", "0:0"}


@every_service
def test_images_have_exact_versions(name: str) -> None:
    assert EXACT.fullmatch(SERVICES[name]["image"])


@every_service
def test_each_waits_until_what_it_needs_is_healthy(name: str) -> None:
    service = SERVICES[name]
    assert "healthcheck" in service or name == "worker"
    for other, how in service.get("depends_on", {}).items():
        assert other in SERVICES
        assert how == {"condition": "service_healthy"}


def test_the_worker_is_run_as_its_image_says() -> None:
    worker = SERVICES["worker"]
    assert worker["image"] == f"secrets-bridge-worker:{__version__}"
    assert worker["user"] == IMAGE.last("USER").text
    assert IMAGE.last("HEALTHCHECK")
    assert not {"command", "entrypoint", "healthcheck", "ports"} & worker.keys()
    assert int(worker["stop_grace_period"].removesuffix("s")) > 20


@every_service
def test_no_password_is_written_down_and_nothing_is_published_to_others(name: str) -> None:
    service = SERVICES[name]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    for variable, value in service.get("environment", {}).items():
        if "PASSWORD" in variable or "@" in value:
            assert re.search(r"\$\{\w+:\?is missing in deploy/\.env\}", value)


@every_service
def test_what_is_mounted_exists(name: str) -> None:
    for volume in SERVICES[name].get("volumes", ()):
        if isinstance(volume, str):
            assert volume.partition(":")[0] in COMPOSE["volumes"]
            continue
        assert (FILE.parent / volume["source"]).exists()
        assert volume["read_only"] is True
        assert volume["bind"] == {"create_host_path": False}  # else Docker makes a folder of what is misspelt


def test_redis_evicts_nothing() -> None:
    assert "noeviction" in SERVICES["redis"]["command"]


def test_prometheus_scrapes_every_worker_and_grafana_reads_prometheus() -> None:
    (job,) = load("prometheus/prometheus.yml")["scrape_configs"]
    (lookup,) = job["dns_sd_configs"]
    assert lookup["names"] == ["worker"]
    assert str(lookup["port"]) == IMAGE.last("EXPOSE").text
    (source,) = load("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = load("grafana/provisioning/dashboards/dashboards.yml")["providers"]
    targets = {volume["target"]: volume["source"] for volume in SERVICES["grafana"]["volumes"] if "source" in volume}
    assert targets[provider["options"]["path"]] == "grafana"


def test_renovate_pins_images_and_merges_no_dramatiq() -> None:
    said = json.loads((ROOT / "renovate.json").read_text(encoding="utf-8"))
    assert "docker:pinDigests" in said["extends"]
    (rule,) = [rule for rule in said["packageRules"] if "dramatiq" in rule.get("matchPackageNames", ())]
    assert set(rule["matchPackageNames"]) == {"dramatiq", "periodiq"}
    assert rule["automerge"] is False
    assert rule is said["packageRules"][-1]  # later rules win
    assert not [rule for rule in said["packageRules"] if rule.get("automerge")]
