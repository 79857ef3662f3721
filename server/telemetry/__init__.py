"""Logging, metrics, tracing and readiness."""
