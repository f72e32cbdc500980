"""The claim protocol, explored: an abstract model to a depth, and the real code by schedules."""
