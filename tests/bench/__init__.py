"""The measuring harness itself, with numbers that say nothing."""
