"""Notifications: from an event in a sweep's transaction to a receiver that has it, or a dead letter."""
