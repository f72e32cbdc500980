"""Discover targets: their published forms and the job each becomes."""
