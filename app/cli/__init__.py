"""`sb-worker`: what an operator does by hand."""
