"""Answers of others, and requests."""
