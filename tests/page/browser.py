"""A real headless Chromium, driven over WebDriver with nothing but HTTP."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from app.demo.ports import reserved_port
from app.supervisor.parent_death import signal_at_parent_death
from tests.support.packages import program
from tests.support.waiting import HUNG, eventually

#: What keeps it from the network and from settings of anybody else.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


def browser_programs() -> tuple[Path, Path]:
    """Return the browser and its driver; skip the test where they are not installed, unless REQUIRE_BROWSER=1."""
    try:
        return program("chromium", "chromium"), program("chromedriver", "chromium-driver")
    except pytest.skip.Exception:
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail("REQUIRE_BROWSER=1, and chromium with chromium-driver is not installed")
        raise


class Browser:
    """One browser with one tab, gone after the context."""

    def __enter__(self) -> Self:
        chromium, driver = browser_programs()
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True))
            port = stack.enter_context(reserved_port())
            process = subprocess.Popen(
                [driver, f"--port={port}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=signal_at_parent_death,  # noqa: PLW1509 - only prctl is called
            )
            stack.callback(_kill, process)
            self._http = stack.enter_context(
                httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=HUNG, trust_env=False)
            )
            eventually(self._answers)
            options = {"binary": str(chromium), "args": [*_FLAGS, f"--user-data-dir={folder}"]}
            wanted = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{made['sessionId']}"
            stack.callback(self._call, "DELETE", self._session)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, url: str) -> None:
        """Load a page, and wait until it is there."""
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str) -> Any:
        """Return what a script of ours returns in the page."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """Give the page a window of this size, in CSS pixels."""
        words = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self._devtools("Emulation.setDeviceMetricsOverride", words)

    def scheme(self, name: str) -> None:
        """Prefer `light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self._devtools("Emulation.setEmulatedMedia", {"features": [feature]})

    def screenshot(self) -> bytes:
        """Return the window as a PNG."""
        return base64.b64decode(self._devtools("Page.captureScreenshot", {"format": "png"})["data"])

    def accessibility(self) -> list[dict[str, Any]]:
        """Return what a screen reader is told, node by node."""
        found: list[dict[str, Any]] = self._devtools("Accessibility.getFullAXTree", {})["nodes"]
        return found

    def complaints(self) -> list[str]:
        """Return what the console has said since the last call: refusals by the page's policy among it."""
        return [entry["message"] for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def _log(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("POST", f"{self._session}/se/log", {"type": kind})
        return found

    def _devtools(self, command: str, parameters: dict[str, Any]) -> dict[str, Any]:
        words = {"cmd": command, "params": parameters}
        found: dict[str, Any] = self._call("POST", f"{self._session}/goog/cdp/execute", words)
        return found

    def _answers(self) -> bool:
        try:
            return bool(self._call("GET", "/status")["ready"])
        except httpx.TransportError:
            return False

    def _call(self, method: str, path: str, words: dict[str, Any] | None = None) -> Any:
        answer = self._http.request(method, path, json=words).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # its session is its own, the browser's processes among it
    process.wait()
