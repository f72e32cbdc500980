"""Spans of ticks, runs, batches, deliveries and polls, for an OpenTelemetry collector; off unless one is configured."""
