"""The GitOps sweepers on the api's tables, against a server that answers as ArgoCD does."""
