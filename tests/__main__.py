"""`python -m tests`: the whole suite, in two processes side by side, each with servers of its own.

Most tests wait for processes, and leave a core idle. One half is shown while it runs, the other one when both are over.
Alerts come after them, alone: a machine that is busy is what some of them are about.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ALONE = ("alerts",)
#: The folders whose tests start whole processes; all others are the other half.
OF_PROCESSES = ("bench", "chaos", "demo", "deploy", "drill", "page", "soak", "supervisor", "system", "tracing")


def main() -> int:
    """Run both halves and return the exit status of the one that went worse."""
    folders = sorted(path.name for path in HERE.iterdir() if path.name not in ALONE and any(path.glob("**/test_*.py")))
    shown = [name for name in folders if name in OF_PROCESSES]
    others = [name for name in folders if name not in OF_PROCESSES]
    print(f"two halves side by side: {', '.join(shown)}; and {', '.join(others)}, shown at the end", flush=True)
    with tempfile.TemporaryFile() as output:
        second = subprocess.Popen(_pytest(others), stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        try:
            first = subprocess.run(_pytest(shown), check=False, stdin=subprocess.DEVNULL).returncode
            status = second.wait()
        finally:
            if second.poll() is None:
                second.terminate()
                second.wait()
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    last = subprocess.run(_pytest(list(ALONE)), check=False, stdin=subprocess.DEVNULL).returncode
    return max(abs(first), abs(status), abs(last))


def _pytest(folders: list[str]) -> list[str]:
    return [sys.executable, "-m", "pytest", *(str(HERE / name) for name in folders)]


if __name__ == "__main__":
    sys.exit(main())
