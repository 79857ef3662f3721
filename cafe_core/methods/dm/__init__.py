"""DM: distribution matching."""
