"""Tests of the room `app.notify`."""
