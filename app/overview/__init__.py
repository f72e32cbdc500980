"""What an operator is shown of a deployment: read once, judged once, shown by a command, a page and metrics."""
