"""Faults: a module for each kind, each a function that strikes once, heals what it broke, and counts its effect."""
