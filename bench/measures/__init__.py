"""All measurements, in the order of the table."""

from __future__ import annotations

from bench.measurement import Measurement
from bench.measures.deliveries import DELIVERIES
from bench.measures.replicas import REPLICAS
from bench.measures.scale import SCALE
from bench.measures.sweeps import SWEEPS
from bench.measures.ticks import TICKS

MEASUREMENTS: tuple[Measurement, ...] = (*SWEEPS, *TICKS, *REPLICAS, *DELIVERIES, *SCALE)
