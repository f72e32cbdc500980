"""What happens around an actor, in the order in which it happens: metrics, lifecycle, traces, retries, lock."""
