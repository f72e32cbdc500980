"""ArgoCD, read-only: what is asked, what is made of the answers, and many polls at once."""
