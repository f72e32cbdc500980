"""Key management: opens the envelopes that the api seals ArgoCD tokens in. No provider SDK is used."""
