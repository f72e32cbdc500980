"""No provider's SDK: the tree that is installed has none, whatever else is on the machine of a developer."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from tests.rules.requirements import locked
from tests.support.processes import ROOT, environment

#: Names that one of them is imported by: the clouds', Vault's, Kubernetes', ArgoCD's, and those of receivers.
SDKS = (
    *("boto3", "botocore", "aiobotocore", "aioboto3", "s3transfer", "awscrt", "aws_encryption_sdk"),
    *("hvac", "async_hvac", "consul", "google", "googleapiclient", "gcloud", "azure", "msal", "adal"),
    *("kubernetes", "kubernetes_asyncio", "lightkube", "pykube", "openshift", "argocd", "argocd_client"),
    *("oci", "aliyunsdkcore", "ibm_cloud_sdk_core", "openstack", "digitalocean", "hcloud", "doppler_sdk"),
    *("slack_sdk", "slack", "pymsteams", "discord", "pdpyras", "pagerduty", "twilio", "sendgrid"),
)
#: What a process may load: both entry points, and whatever they load only where it is switched on.
LOADED = """
import importlib, importlib.util, json, pkgutil, sys
sys.path[:0] = json.loads(sys.argv[1])
import app.actors, app.cli.main, app.cli.entry
for package in ("app.kms", "app.gitops", "app.notify", "app.storage", "app.page", "actors", "sinks"):
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(found.name)
loaded = {name.partition(".")[0] for name in sys.modules}
sdks = json.loads(sys.argv[2])
print(json.dumps({
    "loaded": sorted(loaded & set(sdks)),
    "importable": [name for name in sdks if importlib.util.find_spec(name) is not None],
    "ours": app.actors.__file__,
    "theirs": sorted(name for name in loaded if name in ("dramatiq", "redis", "psycopg", "httpx", "cryptography")),
}))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with our wheel and the packages of requirements/run.txt, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    for name in locked("run"):
        here = metadata.distribution(name)
        for top in {Path(str(file)).parts[0] for file in here.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(here.locate_file(top))))
    return folder


def test_no_sdk_is_importable_where_it_is_installed_and_none_is_loaded(installed: Path) -> None:
    given = json.dumps([str(installed)]), json.dumps(SDKS)
    words = [sys.executable, "-I", "-S", "-B", "-c", LOADED, *given]
    env = environment("postgres://127.0.0.1:1/x", "redis://127.0.0.1:1")
    done = subprocess.run(words, cwd=installed, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["ours"]) == installed / "app" / "actors.py"
    assert found["theirs"] == ["cryptography", "dramatiq", "httpx", "psycopg", "redis"]
    assert (found["loaded"], found["importable"]) == ([], [])
