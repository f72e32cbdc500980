"""The manifests: valid by Kubernetes' own schemas, restricted, probed, in accord with the Procfile and the image."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import pytest
import yaml

from app import __version__
from app.supervisor import procfile
from tests.deploy import kustomize
from tests.deploy.dockerfile import stages
from tests.deploy.kustomize import Object, containers, read, render
from tests.support.packages import missing, program
from tests.support.processes import ROOT

PLACE = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("single", "separate")
#: The oldest that the api's chart supports that schemas are published for, and the newest.
VERSIONS = ("1.30", "1.37")
IMAGE = stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))[-1]


def pods(overlay: str) -> dict[str, Object]:
    return kustomize.pods(PLACE / "overlays" / overlay)


EVERY_POD = [(overlay, component) for overlay in OVERLAYS for component in pods(overlay)]
every_pod = pytest.mark.parametrize(("overlay", "component"), EVERY_POD)


def named(objects: list[Object]) -> dict[tuple[str, str], Object]:
    return {(one["kind"], one["metadata"]["name"]): one for one in objects}


def milliseconds(probe: dict[str, Any]) -> int:
    return int(probe["periodSeconds"]) * int(probe["failureThreshold"]) * 1000


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_what_the_published_schemas_allow(overlay: str, version: str) -> None:
    try:
        import kubernetes_validate  # noqa: PLC0415 - installed by `make check` only
    except ImportError:
        missing("kubernetes-validate")
    for one in [*render(PLACE / "overlays" / overlay), *read(PLACE / "secret.example.yaml")]:
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_renders_the_same(overlay: str) -> None:
    words = (program("kubectl", "kubectl"), "kustomize", PLACE / "overlays" / overlay)
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert named(list(yaml.safe_load_all(done.stdout))) == named(render(PLACE / "overlays" / overlay))


@every_pod
def test_pods_are_restricted_and_have_no_token(overlay: str, component: str) -> None:
    """As the Pod Security Standard `restricted` wants it, and no root file system that can be written to."""
    pod = pods(overlay)[component]
    assert pod["automountServiceAccountToken"] is False
    user, _, group = IMAGE.last("USER").text.partition(":")
    context = pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "volumes"} & pod.keys()
    for container in containers(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "hostPort" not in str(container.get("ports"))


@every_pod
def test_pods_have_time_to_end_and_memory_to_run(overlay: str, component: str) -> None:
    pod = pods(overlay)[component]
    assert pod["terminationGracePeriodSeconds"] > 15 + procfile.KILL_AFTER_SECONDS  # SB_WORKER_SHUTDOWN_GRACE
    for container in containers(pod):
        resources = container["resources"]
        assert set(resources["requests"]) == {"cpu", "memory"}
        assert set(resources["limits"]) == {"memory"}


@every_pod
def test_what_serves_probes_is_probed_there(overlay: str, component: str) -> None:
    (container,) = pods(overlay)[component]["containers"]
    if component == "scheduler":  # it serves none
        assert not {"ports", "startupProbe", "livenessProbe", "readinessProbe"} & container.keys()
        return
    settings = named(render(PLACE / "overlays" / overlay))["ConfigMap", "secrets-bridge-worker"]["data"]
    name = "SB_NOTIFICATION_LOCAL_ADDR" if component == "notifier" else "SB_WORKER_LOCAL_ADDR"
    (port,) = container["ports"]
    assert port == {"name": "probes", "containerPort": int(settings[name].rpartition(":")[2])}
    assert settings[name].startswith("0.0.0.0:")
    for probe, path in {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}.items():
        assert container[probe]["httpGet"] == {"path": path, "port": "probes"}
        assert container[probe]["timeoutSeconds"] > 2  # a look at PostgreSQL and Redis may take two
    assert milliseconds(container["startupProbe"]) >= 60_000
    assert milliseconds(container["livenessProbe"]) >= 30_000


def test_commands_are_the_procfiles() -> None:
    commands = procfile.parse((ROOT / "Procfile").read_text(encoding="utf-8"))
    for component, pod in pods("separate").items():
        (container,) = pod["containers"]
        assert sorted([*container["command"], *container["args"]]) == sorted(shlex.split(commands[component]))
    (first,) = pods("separate")["worker"]["initContainers"]
    assert [*IMAGE.last("ENTRYPOINT").words, *first["args"]] == shlex.split(commands["release"])
    (whole,) = pods("single")["replica"]["containers"]
    assert (whole.get("command"), whole["args"]) == (None, IMAGE.last("CMD").words)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_the_pods_and_no_two_deployments_share_any(overlay: str) -> None:
    objects = render(PLACE / "overlays" / overlay)
    (budget,) = [one for one in objects if one["kind"] == "PodDisruptionBudget"]
    (policy,) = [one for one in objects if one["kind"] == "NetworkPolicy"]
    (monitor,) = read(PLACE / "prometheus-operator" / "podmonitor.yaml")
    deployments = [one["spec"] for one in objects if one["kind"] == "Deployment"]
    for spec in deployments:
        labels = spec["template"]["metadata"]["labels"]
        (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
        selectors = (budget["spec"]["selector"], policy["spec"]["podSelector"], monitor["spec"]["selector"])
        for selector in (*selectors, spread["labelSelector"], spec["selector"]):
            assert selector["matchLabels"].items() <= labels.items()
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        assert spec["replicas"] >= 2
    assert len({str(spec["selector"]) for spec in deployments}) == len(deployments)


def test_prometheus_may_scrape_what_it_is_told_to() -> None:
    (policy,) = read(PLACE / "base" / "networkpolicy.yaml")
    (monitor,) = read(PLACE / "prometheus-operator" / "podmonitor.yaml")
    allowed = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    served = {
        port["containerPort"]
        for overlay, component in EVERY_POD
        for container in pods(overlay)[component]["containers"]
        for port in container.get("ports", ())
    }
    assert served == allowed
    assert [one["port"] for one in monitor["spec"]["podMetricsEndpoints"]] == ["probes"]


def test_no_object_has_a_secrets_value() -> None:
    (secret,) = read(PLACE / "secret.example.yaml")
    assert set(secret["stringData"].values()) == {""}
    for overlay, component in EVERY_POD:
        for container in containers(pods(overlay)[component]):
            for variable in container.get("env", ()):
                assert variable["valueFrom"]["secretKeyRef"]["name"] == secret["metadata"]["name"]
                assert variable["name"] in secret["stringData"]


@every_pod
def test_images_have_this_version(overlay: str, component: str) -> None:
    for container in containers(pods(overlay)[component]):
        assert container["image"] == f"registry.example.com/secrets-bridge-worker:{__version__}"
