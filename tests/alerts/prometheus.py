"""A real Prometheus that scrapes replicas of a test and evaluates the rules, all each second."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx

from app.demo.ports import reserved_port
from app.supervisor.parent_death import signal_at_parent_death
from tests.alerts import rules
from tests.alerts.rules import PACKAGE
from tests.support.packages import program
from tests.support.waiting import HUNG, eventually

JOB = "worker"
#: An alert: its name without the prefix, of which deployment, and what it is about: a sweeper, a sink, a kind.
Alert = tuple[str, str, str]


class Prometheus:
    """The server, with its data in a directory of the test."""

    def __init__(self, place: Path, targets: Mapping[str, list[str]], rules_text: str) -> None:
        """`targets` are addresses by the name of their deployment."""
        place.mkdir()
        self._place = place
        self._stack = ExitStack()
        self._port = self._stack.enter_context(reserved_port())
        static = [{"targets": found, "labels": {"deployment": name}} for name, found in targets.items()]
        (place / "rules.yml").write_text(rules_text, encoding="utf-8")
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": JOB, "static_configs": static}],
        }
        (place / "prometheus.json").write_text(json.dumps(config), encoding="utf-8")

    def __enter__(self) -> Self:
        with (self._place / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(program("prometheus", PACKAGE), "--config.file=prometheus.json", "--storage.tsdb.path=data"),
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                cwd=self._place,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=signal_at_parent_death,  # noqa: PLW1509 - only prctl is called
            )
        self._stack.callback(self._end)
        eventually(self._ready)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def firing(self) -> set[Alert]:
        """Return the alerts that fire now."""
        return {_alert(alert["labels"]) for alert in self._alerts() if alert["state"] == "firing"}

    def has_fired(self) -> set[Alert]:
        """Return the alerts that have fired at any time since it was started."""
        found = self._get("/api/v1/query", query='last_over_time(ALERTS{alertstate="firing"}[10m])')
        return {_alert(sample["metric"]) for sample in found["result"]}

    def texts(self) -> list[str]:
        """Return what alerts that fire now say."""
        return [text for alert in self._alerts() for text in alert["annotations"].values()]

    def _alerts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get("/api/v1/alerts")["alerts"]
        return found

    def _get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self._port}{path}"
        return httpx.get(url, params=parameters, timeout=HUNG, trust_env=False).raise_for_status().json()["data"]

    def _ready(self) -> bool:
        assert self._process.poll() is None, (self._place / "log").read_text(encoding="utf-8")[-2000:]
        try:
            return httpx.get(f"http://127.0.0.1:{self._port}/-/ready", timeout=HUNG, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait(HUNG)


def _alert(labels: Mapping[str, str]) -> Alert:
    subject = next((labels[name] for name in ("task", "sink", "kind") if name in labels), "")
    return labels["alertname"].removeprefix(rules.PREFIX), labels.get("deployment", ""), subject
