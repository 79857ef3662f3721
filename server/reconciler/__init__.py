"""Reconcile the database with Ray and the drivers' files."""
