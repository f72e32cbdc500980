"""What is alerted on and shown: rules, runbooks, the dashboard, and real faults under a real Prometheus."""
