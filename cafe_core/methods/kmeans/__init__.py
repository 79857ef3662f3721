"""Embedded k-means."""
