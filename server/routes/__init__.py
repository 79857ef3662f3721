"""The endpoints under /v1, and those for health beside it."""
