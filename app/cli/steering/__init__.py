"""`sb-worker sweep`, `pause`, `resume` and `unlock`: what an operator says about runs."""
