"""The soak: a whole deployment at ten times its usual rates, watched for whatever grows."""
