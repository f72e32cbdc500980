"""Polling ArgoCD: a read-only client, a poller for many endpoints, the verdict on an application."""
