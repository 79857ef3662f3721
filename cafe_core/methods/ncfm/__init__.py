"""NCFM: neural characteristic functions."""
