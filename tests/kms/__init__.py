"""Tests of the room `app.kms`."""
