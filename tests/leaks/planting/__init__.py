"""What is planted, and where: rows, servers behind logins, receivers that say back what they are told."""
