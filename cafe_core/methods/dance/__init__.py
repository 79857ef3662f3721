"""DANCE: dual-view distribution alignment."""
