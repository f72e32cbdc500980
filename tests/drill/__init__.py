"""Twelve incidents, each found with one command and mended with a second: `python -m tests.drill` writes docs/drill.md."""
