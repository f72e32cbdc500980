"""Tests of whole processes, started as an operator starts them."""
