"""What people say about runs: one now, none for a while, none that would change far more than usual."""
