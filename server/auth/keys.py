"""API keys: `cafe_` and 32 random bytes, of which the table holds the SHA-256. Each function works within a transaction.

A key of 256 random bits cannot be guessed from its hash, so a fast hash does; and it is found by that hash, so what a lookup's
time tells of the hash tells nothing of the key.
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
    """What a key may do; each implies the ones before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


class UnknownKeyError(Exception):
    """There is no key with this id."""


@dataclass(frozen=True)
class KeyLimits:
    """A key's own limits; None: the server's."""

    max_running_jobs: int | None = None
    requests_per_minute: int | None = None
    max_upload_bytes: int | None = None
    max_stored_bytes: int | None = None


def new_key() -> str:
    """A new random key."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def is_key(text: str) -> bool:
    """Whether `text` has a key's form."""
    return _KEY.fullmatch(text) is not None


def hash_of(key: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def implied(scopes: Collection[Scope]) -> frozenset[Scope]:
    """These scopes and those that they imply."""
    order = list(Scope)
    highest = max((order.index(scope) for scope in scopes), default=-1)
    return frozenset(order[: highest + 1])


def create(session: Session, key: str, name: str, scopes: Collection[Scope], limits: KeyLimits) -> ApiKey:
    """Store a key that :func:`new_key` made. `scopes`: at least one."""
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
    """The row of a key, revoked or not."""
    return session.scalar(select(ApiKey).where(ApiKey.hash == hash_of(key)))


def all_of(session: Session) -> list[ApiKey]:
    """Every key, the revoked ones included, oldest first."""
    return list(session.scalars(select(ApiKey).order_by(ApiKey.number)))


def revoke(session: Session, key_id: str) -> ApiKey:
    """Make a key useless for good; asking again changes nothing. Raises UnknownKeyError."""
    row = session.scalar(select(ApiKey).where(ApiKey.id == key_id).with_for_update())
    if row is None:
        raise UnknownKeyError(f"there is no key {key_id!r}; `cafe keys list` shows them")
    row.revoked_at = row.revoked_at or utc_now()
    return row


def limits_of(row: ApiKey) -> KeyLimits:
    """A key's own limits."""
    return KeyLimits(row.max_running_jobs, row.requests_per_minute, row.max_upload_bytes, row.max_stored_bytes)


def scopes_of(row: ApiKey) -> frozenset[Scope]:
    """What a key may do, implied scopes included."""
    return implied([Scope(scope) for scope in row.scopes.split()])
