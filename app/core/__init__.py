"""What every room uses: values and settings, errors, events, logs, metrics. Knows no other room."""
