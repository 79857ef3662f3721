"""Every field of a job, defined once: specs, their resolution, and estimates. Nothing here imports torch."""
