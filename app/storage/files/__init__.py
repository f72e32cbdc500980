"""What PostgreSQL and Redis are reached with and lies in files: certificates, keys, passwords."""
