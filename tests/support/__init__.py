"""What tests share: real servers and processes, rows of the control plane, harnesses."""
