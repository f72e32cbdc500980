"""Python programs that run in forks of this process and share the modules that it has loaded.

Programs of one package load the same modules, each for itself, when each is started as a program. Forked from a process
that has them, they have them at once, and their pages in common. The process that forks must have no other thread.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import pkgutil
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NoReturn

from app.supervisor import stops
from app.supervisor.allocator import give_back_large_blocks
from app.supervisor.parent_death import signal_at_parent_death


def preload(modules: Sequence[str]) -> None:
    """Import modules for the programs that will be forked, and keep the garbage collector from touching their pages."""
    give_back_large_blocks()
    for module in modules:
        import_module(module)
    if multiprocessing.get_all_start_methods()[0] == "forkserver":  # whose children would load everything again
        multiprocessing.set_start_method("fork")
    gc.collect()
    gc.freeze()


class Fork:
    """A program in a fork of this process: what the runner uses of subprocess.Popen.

    It has a session of its own, nothing to read, one pipe for all that it writes, no other file of this process, and
    Python's usual signal handlers; it ends when this process dies. `program` is named as in an entry point.
    """

    def __init__(self, name: str, program: str, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        self.returncode: Any = None
        reader, writer = os.pipe()
        parent = os.getpid()
        # Until the child has handlers of its own: this process's would swallow a stop.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _run(name, program, arguments, environ, parent=parent, output=writer, mask=mask)
        except OSError:
            os.close(reader)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(writer)
        self.stdout: IO[bytes] = os.fdopen(reader, "rb", buffering=0)

    def poll(self) -> int | None:
        """Return the exit status, None while it runs; that of a death by signal n is -n."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        """Wait for its end and return the exit status."""
        status = self._wait(0)
        assert status is not None
        return status

    def terminate(self) -> None:
        """Send SIGTERM if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _run(  # noqa: PLR0913 - what a new process is made of
    name: str,
    program: str,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    parent: int,
    output: int,
    mask: set[signal.Signals | int],
) -> NoReturn:
    """In the child: become the program. The parent's stack is never unwound, since what that would end is not ours."""
    status: Any = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (*stops.STOPS, signal.SIGCHLD):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal_at_parent_death()
        if os.getppid() != parent:  # it died before
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        with suppress(OSError):
            Path("/proc/self/comm").write_text(name, encoding="utf-8")  # what `ps` and `top` call it
        os.environ.clear()
        os.environ.update(environ)
        sys.argv[:] = arguments
        status = pkgutil.resolve_name(program)()
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - as Python does at the end of a program
    except SystemExit as end:
        status = end.code
    except BaseException as error:  # noqa: BLE001 - as Python does with what nobody has caught
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        if not isinstance(status, int | None):
            sys.stderr.write(f"{status}\n")
        atexit._run_exitfuncs()  # noqa: SLF001 - the same
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 0 if status is None else 1)
