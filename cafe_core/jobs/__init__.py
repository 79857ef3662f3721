"""Jobs: their directories, events and fences, and how each kind of job runs."""
