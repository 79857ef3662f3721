"""K-Center."""
