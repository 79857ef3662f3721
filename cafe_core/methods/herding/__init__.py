"""Herding."""
