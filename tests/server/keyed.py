"""Helpers for servers with API keys."""

from __future__ import annotations

from collections.abc import Collection

import httpx

from server.auth import keys
from server.auth.keys import KeyLimits, Scope
from server.settings import Settings
from server.store.database import Database
from tests.server.conftest import Api, place_database


def add_key(settings: Settings, *scopes: Scope, name: str = "test", limits: KeyLimits | None = None) -> str:
    """Create a key in the server's database, as `cafe keys create` does, and return it."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    place_database(settings)
    key = keys.new_key()
    database = Database(settings.database)
    try:
        database.migrate()
        with database.write() as session:
            keys.create(session, key, name, scopes, limits or KeyLimits())
    finally:
        database.close()
    return key


def key_id(settings: Settings, key: str) -> str:
    """Return the id of a key."""
    database = Database(settings.database)
    try:
        with database.read() as session:
            row = keys.find(session, key)
            assert row is not None
            return row.id
    finally:
        database.close()


def client_of(api: httpx.Client, key: str | None) -> Api:
    """Return a client of the same server that sends this key, or none. The caller closes it."""
    return Api(base_url=api.base_url, timeout=40, headers={"Authorization": f"Bearer {key}"} if key else {})


def statuses(responses: Collection[httpx.Response]) -> list[int]:
    """Return the status of each response."""
    return [response.status_code for response in responses]
