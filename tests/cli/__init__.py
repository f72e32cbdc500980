"""Tests of the room `app.cli`."""
