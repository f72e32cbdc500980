"""Runs by hand, pauses, brakes, dry runs and locks that nobody gives back."""
