"""PostgreSQL and Redis: settings, connections, URLs, and the migrations of the worker's own schema."""
