"""DC: gradient matching."""
