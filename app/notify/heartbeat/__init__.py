"""A dead man's switch outside: it gets a GET after good runs, and alarms when it gets none."""
