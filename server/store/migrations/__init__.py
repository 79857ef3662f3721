"""How the tables came to be what :mod:`server.store.models` says, a step a file of `versions/`; see `Database.migrate`."""
