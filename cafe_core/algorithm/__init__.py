"""Algorithm 1 and its parts. Nothing here knows about jobs, Ray or the web."""
