"""How the tables came to be what :mod:`server.models` says, a step a file of `versions/`; see `Database.migrate`."""
