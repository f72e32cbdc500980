"""One run of a sweeper: its claim, its fence, its failures and its end."""
