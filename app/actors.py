"""The entry point: `dramatiq app.actors` runs workers, `periodiq app.actors` the scheduler."""

from app.worker.stopping import early_stops

early_stops()  # the other imports take a second, in which a stop may come

import app.core.logging  # noqa: E402, F401 - the first to load structlog, which it keeps small
from actors import SWEEPERS  # noqa: E402 - see above
from app.worker.assembly import build  # noqa: E402
from sinks import SINKS  # noqa: E402

broker = build(SWEEPERS, SINKS)
