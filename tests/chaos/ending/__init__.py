"""The end of a round: how it comes to rest, and what it has left behind."""
