"""Judges an overview: what is not as it should be, and what mends it."""
