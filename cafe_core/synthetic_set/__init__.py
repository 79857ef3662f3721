"""The synthetic set as a file, and previews of it."""
