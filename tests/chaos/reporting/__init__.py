"""What a round came to: its figures, its lines, its document and the table."""
