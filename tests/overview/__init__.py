"""Tests of the room `app.overview`."""
