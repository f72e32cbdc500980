"""The page, by its markup, over HTTP and in a real browser."""
