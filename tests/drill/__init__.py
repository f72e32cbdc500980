"""Twelve incidents, each found with one command and mended with a second: docs/drill.md is what that looks like."""
