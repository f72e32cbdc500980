"""What happened: read from the ledger long after, explained for one slot, and checked for all of them."""
