"""The page that a worker shows of its deployment: one overview as HTML and as JSON, without scripts or assets."""
