"""What a deployment lives among: receivers and ArgoCD, the api's load, an operator's commands."""
