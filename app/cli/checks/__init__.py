"""What `sb-worker check` looks at, each part by itself."""
