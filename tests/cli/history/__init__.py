"""Tests of the commands that look back."""
