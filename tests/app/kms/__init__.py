"""Tests of app/kms."""
