"""A sweep, from a due slot to a closed ledger row: schedule, lock, fence, batches, runner."""
