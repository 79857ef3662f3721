"""Authentication and authorization: API keys, scopes, quotas, rate limits, visibility."""
