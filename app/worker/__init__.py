"""A worker process: broker, middleware, probes, and the assembly of all of it."""
