"""What a server loads to start: a module that only some requests need would lengthen every restart."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

from server.cli.importing import for_good
from server.settings import Settings
from server.store.database import Database

ROOT = Path(__file__).parents[3]
OF_SOME_REQUESTS = {"numpy", "PIL", "safetensors", "sklearn", "scipy", "matplotlib", "torch", "torchvision", "ray", "yaml"}
OF_OTHER_DATABASES = {"alembic", "mako", "psycopg", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.mssql"}
OF_THE_SERVER = {"sqlalchemy", "pydantic", "fastapi", "starlette", "uvicorn", "prometheus_client", "opentelemetry"}


def loaded_by(code: str, *arguments: str) -> set[str]:
    """The modules that a process of its own has loaded after `code`."""
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_server_that_starts_loads_what_it_needs_for_that(tmp_path: Path) -> None:
    url = Settings(data_dir=tmp_path).database
    database = Database(url)
    database.migrate()
    database.close()
    code = "import server.serve\nfrom server.store.database import Database\nDatabase(sys.argv[1]).migrate()"
    loaded = loaded_by(code, url)
    assert "server.app" in loaded
    assert not loaded & (OF_SOME_REQUESTS | OF_OTHER_DATABASES)


def test_a_command_that_asks_a_server_loads_nothing_of_one() -> None:
    loaded = loaded_by("import server.cli.main")
    assert "httpx" in loaded
    assert not loaded & (OF_SOME_REQUESTS | OF_OTHER_DATABASES | OF_THE_SERVER)


def test_the_garbage_collector_rests_during_imports_only() -> None:
    with for_good():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()
