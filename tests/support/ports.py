"""Ports for servers that a test starts as processes of their own: held as those of the demo are."""

from app.demo.ports import reserved_port

__all__ = ["reserved_port"]
