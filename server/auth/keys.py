"""Create, find and revoke API keys: `cafe_` and 32 random bytes. The database stores only the SHA-256.

A fast hash suffices because a key has 256 random bits. Keys are looked up by hash, so the time of a lookup reveals nothing about
the key. Each function that takes a session runs within its transaction.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from cafe_core.jobs.jobdir import utc_now
from server.store.models import ApiKey, new_id

PREFIX = "cafe_"
KEY_BYTES = 32
_KEY = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")


class Scope(StrEnum):
    """Scope of a key. Each scope implies the ones before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


class UnknownKeyError(Exception):
    """There is no key with this id."""


@dataclass(frozen=True)
class KeyLimits:
    """Limits of a single key; None means the server's default."""

    max_running_jobs: int | None = None
    requests_per_minute: int | None = None
    max_upload_bytes: int | None = None
    max_stored_bytes: int | None = None


def new_key() -> str:
    """Return a new random key."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def is_key(text: str) -> bool:
    """Return whether `text` has the format of a key."""
    return _KEY.fullmatch(text) is not None


def hash_of(key: str) -> str:
    """Return the hash that is stored instead of the key."""
    return hashlib.sha256(key.encode()).hexdigest()


def implied(scopes: Collection[Scope]) -> frozenset[Scope]:
    """Return the given scopes and those that they imply."""
    order = list(Scope)
    highest = max((order.index(scope) for scope in scopes), default=-1)
    return frozenset(order[: highest + 1])


def create(session: Session, key: str, name: str, scopes: Collection[Scope], limits: KeyLimits) -> ApiKey:
    """Store a key made by :func:`new_key`. `scopes` must not be empty."""
    assert is_key(key)
    assert scopes
    row = ApiKey(
        id=new_id("key"),
        name=name,
        hash=hash_of(key),
        scopes=" ".join(scope for scope in Scope if scope in scopes),
        max_running_jobs=limits.max_running_jobs,
        requests_per_minute=limits.requests_per_minute,
        max_upload_bytes=limits.max_upload_bytes,
        max_stored_bytes=limits.max_stored_bytes,
    )
    session.add(row)
    session.flush()
    return row


def find(session: Session, key: str) -> ApiKey | None:
    """Return the row of a key, revoked or not; None if the key is unknown."""
    return session.scalar(select(ApiKey).where(ApiKey.hash == hash_of(key)))


def all_of(session: Session) -> list[ApiKey]:
    """Return all keys, including revoked ones, oldest first."""
    return list(session.scalars(select(ApiKey).order_by(ApiKey.number)))


def revoke(session: Session, key_id: str) -> ApiKey:
    """Revoke a key permanently. Idempotent. Raises UnknownKeyError."""
    row = session.scalar(select(ApiKey).where(ApiKey.id == key_id).with_for_update())
    if row is None:
        raise UnknownKeyError(f"there is no key {key_id!r}; list the keys with `cafe keys list`")
    row.revoked_at = row.revoked_at or utc_now()
    return row


def limits_of(row: ApiKey) -> KeyLimits:
    """Return the limits of a key."""
    return KeyLimits(row.max_running_jobs, row.requests_per_minute, row.max_upload_bytes, row.max_stored_bytes)


def scopes_of(row: ApiKey) -> frozenset[Scope]:
    """Return the scopes of a key, including implied ones."""
    return implied([Scope(scope) for scope in row.scopes.split()])
