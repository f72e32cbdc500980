"""The rights of deploy/: the role and the user that everything under test runs as."""
