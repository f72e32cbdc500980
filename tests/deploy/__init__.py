"""What deploys the worker, run or judged without a container engine, a cluster or systemd."""
