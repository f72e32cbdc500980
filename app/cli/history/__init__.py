"""`sb-worker why`, `runs` and `verify`: what happened, by the ledger."""
