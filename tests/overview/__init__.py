"""Tests of what an operator is shown of a deployment, and of its past."""
