"""From due to settled: a batch of one receiver's deliveries is claimed, sent side by side, and settled."""
