"""All processes of a deployment: their signs of life in PostgreSQL, and what these say together."""
