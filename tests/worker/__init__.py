"""Tests of the room `app.worker`."""
