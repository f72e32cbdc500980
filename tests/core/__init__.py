"""Tests of the room `app.core`."""
