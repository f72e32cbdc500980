"""What every room uses: values and settings, errors, events, logs, metrics. Knows no other room."""

import sys

# Where click and rich are installed, httpx imports its command line and both of them with it: 6 MiB in each process.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
