"""Tests of the room `app.gitops`."""
