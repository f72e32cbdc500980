"""What an operator sets, names or types."""
