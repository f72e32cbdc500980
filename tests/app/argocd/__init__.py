"""Tests of app/argocd."""
