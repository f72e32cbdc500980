"""An end with the parent: a signal that Linux sends to a process when the one that started it has died."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
# Looked up here: between fork and exec an import, a lock or an allocation may hang the child for ever.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def signal_at_parent_death(number: signal.Signals = signal.SIGTERM) -> None:
    """Have Linux send `number` to this process when its parent dies, so that a killed one leaves no orphans.

    Safe between fork and exec. A parent that has died already is not noticed: compare os.getppid() afterwards. A
    change of user clears this, so it comes after that. Elsewhere than on Linux nothing is done.
    """
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, number)
