"""Tests of the room `app.supervisor`."""
