"""Runs the processes of a Procfile; the standard library only."""
