"""Tests of the room `app.storage`."""
