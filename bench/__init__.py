"""Measurements, each beside the best that the machine can do in the same run. Not tests: they assert nothing."""
