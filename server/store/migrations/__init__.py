"""Migrations of the tables of :mod:`server.store.models`, one per file in `versions/`; see `Database.migrate`."""
