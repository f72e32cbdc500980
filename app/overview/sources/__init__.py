"""Where an overview is read from: PostgreSQL, part by part, and Redis."""
