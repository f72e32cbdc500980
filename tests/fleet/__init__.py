"""Tests of the room `app.fleet`."""
