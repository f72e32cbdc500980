"""A round that never happened, all that may be wrong with one, and the proof that each is found by its check."""
