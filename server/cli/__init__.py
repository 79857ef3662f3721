"""The `cafe` command: one module per group of commands."""
