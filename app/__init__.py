"""The worker of the secrets-bridge control plane: one folder for each purpose, imports in one direction."""

__version__ = "0.2.0"
