"""Measurements, each beside the best that the machine can do in the same run. Not tests: they assert nothing.

`make bench` (`python -m bench`) takes all of `bench.measures` and writes `bench/results/`. The other modules that can
be run, each with `--help`, look at a single subject for longer.
"""
