"""The hard rules, each as a test: what no change may ever take back."""
