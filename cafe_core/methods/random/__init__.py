"""Random real images."""
