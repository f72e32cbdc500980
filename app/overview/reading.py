"""Reads an overview from PostgreSQL and Redis."""
