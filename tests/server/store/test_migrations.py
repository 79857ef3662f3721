from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from click.testing import CliRunner, Result
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from server.cli.main import main
from server.settings import Settings
from server.store import models
from server.store.database import Database
from server.store.migrating import MIGRATIONS
from server.store.models import ApiKey, Artifact, Attempt, Base, Dataset, Delivery, Event, IdempotencyKey, Job, JobLabel
from server.store.revisions import NEWEST, NewerDatabaseError, UnknownRevisionError

pytestmark = pytest.mark.both_databases

FIRST_TABLES = ("jobs", "job_labels", "attempts", "events", "idempotency", "datasets")
"""The tables at revision 0001."""


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """A database without tables."""
    settings.data_dir.mkdir()
    database = Database(settings.database)
    database.migrate("base")
    yield database
    database.close()


def job(name: str, **fields: Any) -> Job:
    return Job(id=name, kind="condense", spec={"kind": "condense", "λ": [1, None]}, error={"code": "a\x00b"}, **fields)


def fill(database: Database) -> None:
    """Insert at least one row into each table."""
    with database.write() as session:
        session.add(ApiKey(id="key_a", name="a", hash="0" * 64, scopes="read write", max_stored_bytes=2**40))
        session.flush()
        session.add_all(
            [
                job("job_a", owner="key_a", stored_bytes=2**40, labels=[JobLabel(key="k", value="v")]),
                job("job_b", eta_s=0.5),
                job("job_c"),
            ]
        )
        session.add(Dataset(id="ds_a", owner="key_a", name="a", size=2**30, sha256="1" * 64, info={"classes": 10}))
        session.flush()
        session.add_all([Attempt(job_id="job_a", number=n, cause=cause) for n, cause in enumerate(("submitted", "lost"), 1)])
        session.add(Event(job_id="job_a", number=1, attempt=1, time="2026", type="status", data={"status": "queued"}))
        session.add(IdempotencyKey(owner="key_a", key="k", body_sha256="2" * 64, job_id="job_a", created_at="2026-01-02"))
        session.add(IdempotencyKey(owner="", key="k", body_sha256="3" * 64, job_id="job_b", created_at="2026-01-01"))
        session.add(Delivery(id="msg_a", job_id="job_a", url="https://a", body="{}"))
        session.flush()
        session.add(Artifact(job_id="job_a", attempt=2, name="a", size=2**40, sha256="4" * 64, media_type="text/plain"))
    with database.write() as session:
        session.delete(session.query(Job).filter_by(id="job_c").one())  # its number must not be reused


def rows(database: Database, table: str) -> list[dict[str, Any]]:
    with database.read() as session:
        return sorted((dict(row) for row in session.execute(text(f"SELECT * FROM {table}")).mappings()), key=repr)


def counts(database: Database) -> dict[str, int]:
    return {table: len(rows(database, table)) for table in Base.metadata.tables}


def test_newest_revision_is_the_last_migration() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == NEWEST


def test_rows_survive_downgrade_and_upgrade(database: Database) -> None:
    database.migrate()
    fill(database)
    assert min(counts(database).values()) > 0
    newest = {table: rows(database, table) for table in FIRST_TABLES}

    database.migrate("0001")
    for table in set(FIRST_TABLES) - {"idempotency"}:
        kept = rows(database, table)
        assert kept == [{column: row[column] for column in kept[0]} for row in newest[table]], table
    assert [row["job_id"] for row in rows(database, "idempotency")] == [
        "job_b"
    ]  # a key that two owners used stays with the first job

    database.migrate()
    lost = {"owner": None, "cause": "submitted", "stored_bytes": None}
    for table in set(FIRST_TABLES) - {"idempotency"}:
        expected = [row | {column: value for column, value in lost.items() if column in row} for row in newest[table]]
        assert rows(database, table) == sorted(expected, key=repr), table
    assert [(row["owner"], row["job_id"]) for row in rows(database, "idempotency")] == [("", "job_b")]
    assert counts(database) | {"api_keys": 0, "artifacts": 0, "deliveries": 0} == counts(database)


def test_stored_bytes_column_follows_its_migration(database: Database) -> None:
    database.migrate()
    fill(database)
    newest = {table: rows(database, table) for table in Base.metadata.tables}
    database.migrate("0002")
    assert "stored_bytes" not in rows(database, "jobs")[0]
    database.migrate()
    assert rows(database, "jobs") == sorted([row | {"stored_bytes": None} for row in newest.pop("jobs")], key=repr)
    assert {table: rows(database, table) for table in newest} == newest


def test_foreign_keys_and_sequence_survive_migrations(database: Database) -> None:
    database.migrate()
    fill(database)
    database.migrate("0001")
    database.migrate()
    with database.write() as session:
        session.add(job("job_d"))
    numbers = {row["id"]: row["number"] for row in rows(database, "jobs")}
    assert numbers["job_d"] == 4  # 3 was a deleted job's
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(Event(job_id="job_nowhere", number=1, attempt=1, time="", type="", data={}))
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(job("job_e", owner="key_nobody"))
    with database.write() as session:
        session.execute(text("DELETE FROM jobs WHERE id = 'job_a'"))
    assert {table: rows(database, table) for table in ("job_labels", "attempts", "events")} == {
        "job_labels": [],
        "attempts": [],
        "events": [],
    }


def test_downgrade_to_base_and_upgrade(database: Database) -> None:
    database.migrate()
    fill(database)
    database.migrate("base")
    assert (database.revision(), inspect(database.engine).get_table_names()) == (None, ["alembic_version"])
    database.migrate()
    assert set(counts(database).values()) == {0}


def test_migrations_create_the_tables_of_the_models(database: Database) -> None:
    database.migrate()
    assert database.revision() == NEWEST
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, models.Base.metadata) == []
        if database.engine.dialect.name == "sqlite":
            (made,) = connection.execute(text("SELECT sql FROM sqlite_master WHERE name = 'jobs'")).one()
            assert "AUTOINCREMENT" in made


def test_concurrent_servers_migrate_one_after_the_other(database: Database, settings: Settings) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        servers = [Database(settings.database) for _ in range(4)]
        for server in servers:
            stack.callback(server.close)
        list(pool.map(Database.migrate, servers))  # raises what one of them raised
    assert database.revision() == NEWEST


def test_failed_migration_is_rolled_back(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.migrate("0001")
    before = {table: inspect(database.engine).get_columns(table) for table in FIRST_TABLES}

    def fails(_connection: object) -> None:
        raise SystemError("failed")

    with monkeypatch.context() as patched:
        patched.setattr("server.store.migrating._check_references", fails)
        with pytest.raises(SystemError):
            database.migrate()
    assert database.revision() == "0001"
    assert repr({table: inspect(database.engine).get_columns(table) for table in FIRST_TABLES}) == repr(before)
    database.migrate()


def test_refuses_database_of_a_newer_version(database: Database) -> None:
    database.migrate()
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for revision in ("head", "0001", "base"):
        with pytest.raises(NewerDatabaseError, match="revision 9999"):
            database.migrate(revision)
    assert database.revision() == "9999"


def test_refuses_unknown_revision(database: Database) -> None:
    for revision in ("0000", "nonsense", "", "-1", "0001:0002"):
        with pytest.raises(UnknownRevisionError, match="base, 0001"):
            database.migrate(revision)
    assert database.revision() is None


@pytest.fixture
def cafe_db(database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:  # noqa: ARG001
    if settings.database_url is not None:
        monkeypatch.setenv("CAFE_DATABASE_URL", settings.database)
    return lambda *words: CliRunner().invoke(main, ["db", *words, "--data-dir", str(settings.data_dir)])


def test_db_command(cafe_db: Callable[..., Result], database: Database) -> None:
    newest = NEWEST
    assert cafe_db("current").output == f"no tables, newest: {newest}\n"
    assert cafe_db("upgrade").output == f"the tables are at revision {newest}\n"
    assert cafe_db("downgrade", "0001").output == "the tables are at revision 0001\n"
    assert cafe_db("current").output == f"0001, newest: {newest}\n"
    assert cafe_db("upgrade", newest).exit_code == 0
    assert cafe_db("current").output == f"{newest} (newest)\n"
    refused = cafe_db("downgrade", "nonsense")
    assert (refused.exit_code, "'nonsense'" in refused.output) == (2, True)
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    newer = cafe_db("upgrade")
    assert (newer.exit_code, "revision 9999" in newer.output) == (1, True)


def test_db_command_with_unreachable_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAFE_DATABASE_URL", "postgresql://cafe:secret@127.0.0.1:1/cafe")
    failed = CliRunner().invoke(main, ["db", "current"])
    assert failed.exit_code == 1
    assert "the database does not" in failed.output
    assert "secret" not in failed.output
