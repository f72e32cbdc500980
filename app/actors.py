"""The entry point: `dramatiq app.actors` runs workers, `periodiq app.actors` the scheduler."""

from actors import SWEEPERS
from app.worker.assembly import build
from sinks import SINKS

broker = build(SWEEPERS, SINKS)
