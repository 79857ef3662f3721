"""A server and the client commands start without the slow imports that they do not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from server.settings import Settings
from server.store.database import Database

ROOT = Path(__file__).parents[3]
OF_SOME_JOBS = {"sklearn", "scipy", "matplotlib", "torch", "torchvision", "ray"}
OF_OTHER_DATABASES = {"alembic", "mako", "psycopg", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.mssql"}
OF_THE_SERVER = {"sqlalchemy", "pydantic", "fastapi", "starlette", "uvicorn", "prometheus_client", "opentelemetry"}


def loaded_by(code: str, *arguments: str) -> set[str]:
    """Return the modules that are loaded after `code` has run in a new process."""
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_server_starts_without_modules_that_only_jobs_need(tmp_path: Path) -> None:
    url = Settings(data_dir=tmp_path).database
    database = Database(url)
    database.migrate()
    database.close()
    code = "import server.serve\nfrom server.store.database import Database\nDatabase(sys.argv[1]).migrate()"
    loaded = loaded_by(code, url)
    assert "server.app" in loaded
    assert not loaded & (OF_SOME_JOBS | OF_OTHER_DATABASES)


def test_client_command_loads_no_server_modules() -> None:
    loaded = loaded_by("import server.cli.main")
    assert "httpx" in loaded
    assert not loaded & (OF_SOME_JOBS | OF_OTHER_DATABASES | OF_THE_SERVER | {"numpy"})
