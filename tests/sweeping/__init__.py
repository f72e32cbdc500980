"""Tests of the room `app.sweeping`."""
