"""Forgetting."""
