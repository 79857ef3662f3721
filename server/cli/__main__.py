"""Run the `cafe` command: `python -m server.cli`."""

from server.cli.main import main

main(prog_name="cafe")
