"""The fence and the ledger: what PostgreSQL decides about a run, and what it remembers.

A slot is claimed by one statement that moves `sweep_state` forward and takes a new token, in the transaction of the
run's first batch. Every later batch holds that row FOR SHARE and does nothing when the token has moved. So a run that
was paused, or whose Redis lock lied, can neither claim a slot twice nor write after its successor.
"""
