"""Plan and admit submitted jobs."""
