"""The directory of incomplete uploads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx

from server.settings import Settings
from tests.server.reconciler.test_restarts import serving

BOUNDARY = "boundary"
HEAD = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="made.npz"\r\n\r\n'.encode()
TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()
MEBIBYTE = bytes(1 << 20)


def test_incomplete_upload_is_on_the_disk_of_the_data_directory(settings: Settings) -> None:
    seen: set[Path] = set()

    with serving(settings) as served:

        def body() -> Iterator[bytes]:
            yield HEAD
            for _ in range(20):
                yield MEBIBYTE
                seen.update(files_open_in(served.pid))
            yield TAIL

        answer = httpx.post(
            f"{served.url}/v1/datasets",
            content=body(),
            headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
            timeout=60,
            trust_env=False,
        )
    assert answer.status_code == 422  # zeros are no .npz
    unnamed = {path.parent for path in seen if path.name.endswith("(deleted)")}
    assert unnamed == {settings.data_dir / "spool"}


def files_open_in(pid: int) -> set[Path]:
    """Return the targets of a process's file descriptors."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has been closed
            found.add(descriptor.readlink())
    return found
