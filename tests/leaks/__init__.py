"""Canaries in every secret and every row of a deployment that is made to fail: none of them may be found outside."""
