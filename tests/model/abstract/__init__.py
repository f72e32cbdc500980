"""The claim protocol as an abstract model, explored exhaustively to a depth."""
