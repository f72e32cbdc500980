"""The worker of the secrets-bridge control plane: wiring, runner, command line."""

__version__ = "0.1.0"
