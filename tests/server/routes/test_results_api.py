from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load, save_file

from cafe_core.data.builtin import BUILTIN
from cafe_core.jobs.job import write_manifest
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import CondensedDataset, DatasetInfo
from cafe_core.synthetic_set.synthetic_set import SyntheticSet, from_checkpoint
from server.routes import artifacts
from server.settings import Settings
from tests.server.conftest import Api, FakeRay, attempt_dir, driver_of
from workers.client import RayJob, RayJobState


def checkpoint(settings: Settings, job_id: str, iteration: int) -> Path:
    """Write a checkpoint as a driver does: ten 8×8 images whose values are the iteration."""
    directory = settings.job_dir(job_id)
    directory.checkpoints.mkdir(exist_ok=True)
    directory.dataset_file.write_text(BUILTIN["digits"].model_dump_json())
    images = np.full((10, 1, 8, 8), iteration / 10, dtype=np.float32)
    path = directory.checkpoints / f"checkpoint-{iteration:08d}.safetensors"
    save_file({"images": images, "momentum": images}, path, {"iteration": str(iteration), "spec_digest": ""})
    return path


@pytest.fixture
def started(api: Api, ray: FakeRay) -> str:
    job_id: str = api.make()["id"]
    api.await_job(job_id, lambda _: ray.submissions != [])
    return job_id


@pytest.fixture
def finished(api: Api, ray: FakeRay, settings: Settings, started: str) -> str:
    return finish(api, ray, settings, started)


def finish(api: Api, ray: FakeRay, settings: Settings, started: str, class_sha256: list[str] | None = None) -> str:
    """Finish a running job of ten iterations, as its driver does, and return its id."""
    spec = CondenseSpec.model_validate(api.job(started)["spec"])
    info = CondensedDataset(**BUILTIN["digits"].model_dump(), class_sha256=class_sha256)
    synthetic = from_checkpoint(checkpoint(settings, started, 10), info, spec, settings.roots.datasets)
    directory = attempt_dir(settings, started)
    synthetic.save(directory.synthetic_file)
    directory.preview_file.write_bytes(synthetic.preview_png())
    directory.result_file.write_text('{"images": 10}')
    write_manifest(directory)
    with driver_of(settings, started) as report:
        report("finished", result={"images": 10})
    ray.jobs[started, 1] = RayJob(RayJobState.SUCCEEDED, "", 0)
    api.await_status(started, "succeeded")
    return started


def test_no_set_before_first_checkpoint(api: Api, started: str) -> None:
    assert api.get(f"/v1/jobs/{started}/artifacts").json() == {"data": []}
    for path in ("synthetic", "preview.png", "artifacts/synthetic.safetensors"):
        response = api.get(f"/v1/jobs/{started}/{path}")
        assert response.status_code == 404
        assert "yet" in response.json()["detail"]


def test_serves_latest_checkpoint_while_running(api: Api, started: str, settings: Settings) -> None:
    checkpoint(settings, started, 2)
    checkpoint(settings, started, 4)
    arrays = load(api.get(f"/v1/jobs/{started}/synthetic").content)
    assert arrays["images"].dtype == np.float32
    np.testing.assert_array_equal(arrays["images"], np.full((10, 1, 8, 8), 0.4, dtype=np.float32))
    np.testing.assert_array_equal(arrays["labels"], np.arange(10))
    checkpoint(settings, started, 6).write_bytes(b"torn")
    assert load(api.get(f"/v1/jobs/{started}/synthetic").content)["images"][0, 0, 0, 0] == np.float32(0.4)
    api.post(f"/v1/jobs/{started}/cancel")
    api.await_status(started, "cancelled")
    assert load(api.get(f"/v1/jobs/{started}/synthetic").content)["images"][0, 0, 0, 0] == np.float32(0.4)
    assert Image.open(io.BytesIO(api.get(f"/v1/jobs/{started}/preview.png").content)).format == "PNG"


def test_set_of_a_checkpoint_carries_no_absolute_path(api: Api, ray: FakeRay, settings: Settings) -> None:
    file = settings.roots.datasets / "own" / "ten.npz"
    file.parent.mkdir(parents=True)
    np.savez(file, images=np.zeros((10, 8, 8), np.uint8), labels=np.arange(10))
    job_id = api.make(dataset={"path": str(file)})["id"]
    api.await_job(job_id, lambda _: ray.submissions != [])
    checkpoint(settings, job_id, 2)
    content = api.get(f"/v1/jobs/{job_id}/synthetic").content
    assert b'\\"path\\": \\"own/ten.npz\\"' in content
    assert str(settings.data_dir).encode() not in content


def test_reads_checkpoint_that_is_replaced_meanwhile(
    api: Api, started: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed checkpoints are deleted before they are opened, and newer ones exist, as a driver may do."""
    listed = [checkpoint(settings, started, iteration) for iteration in (2, 4)]

    def after_rotation(path: Path, info: DatasetInfo, spec: CondenseSpec, root: Path) -> SyntheticSet:
        if path in listed and path.exists():
            for old in listed:
                old.unlink()
            checkpoint(settings, started, 6)
            checkpoint(settings, started, 8)
        return from_checkpoint(path, info, spec, root)

    monkeypatch.setattr("server.files.synthetic_sets.from_checkpoint", after_rotation)
    arrays = load(api.get(f"/v1/jobs/{started}/synthetic").content)
    assert arrays["images"][0, 0, 0, 0] == np.float32(0.8)


def test_unreadable_checkpoints_get_503(api: Api, started: str, settings: Settings) -> None:
    checkpoint(settings, started, 2).write_bytes(b"torn")
    response = api.get(f"/v1/jobs/{started}/synthetic")
    assert response.status_code == 503
    assert "checkpoint-00000002" in response.json()["detail"]


def test_manifest_and_bytes(api: Api, finished: str) -> None:
    artifacts = api.get(f"/v1/jobs/{finished}/artifacts").json()["data"]
    assert [artifact["name"] for artifact in artifacts] == ["preview.png", "result.json", "synthetic.safetensors"]
    for artifact in artifacts:
        response = api.get(artifact["href"])
        assert len(response.content) == artifact["size"] == int(response.headers["content-length"])
        assert hashlib.sha256(response.content).hexdigest() == artifact["sha256"]
        assert response.headers["content-type"] == artifact["media_type"]
        assert response.headers["etag"] == f'"{artifact["sha256"]}"'
    served = api.get(f"/v1/jobs/{finished}/synthetic").content
    assert served == api.get(artifacts[-1]["href"]).content


@pytest.mark.parametrize("name", ["manifest.json", "nothing", "..%2Fevents.jsonl", "%2e%2e", "..%2f..%2f..%2fjob.json"])
def test_serves_only_files_in_manifest(api: Api, finished: str, name: str) -> None:
    assert api.get(f"/v1/jobs/{finished}/artifacts/{name}").status_code == 404


@pytest.mark.parametrize("path", ["artifacts/synthetic.safetensors", "synthetic?format=zip", "preview.png"])
def test_ranges_and_conditions(api: Api, finished: str, path: str) -> None:
    url = f"/v1/jobs/{finished}/{path}"
    whole = api.get(url)
    etag, size = whole.headers["etag"], len(whole.content)
    assert whole.headers["accept-ranges"] == "bytes"

    head = api.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert {k: head.headers[k] for k in ("etag", "content-length", "content-type")} == {
        k: whole.headers[k] for k in ("etag", "content-length", "content-type")
    }
    for header, start, end in (("bytes=0-9", 0, 10), (f"bytes={size - 5}-", size - 5, size), ("bytes=-7", size - 7, size)):
        part = api.get(url, headers={"Range": header})
        assert part.status_code == 206
        assert part.content == whole.content[start:end]
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert part.headers["etag"] == etag
    beyond = api.get(url, headers={"Range": f"bytes={size}-"})
    assert beyond.status_code == 416
    assert beyond.headers["content-range"] == f"bytes */{size}"
    assert beyond.headers["content-type"] == "application/problem+json"
    assert api.get(url, headers={"Range": "bytes=0-9", "If-Range": etag}).status_code == 206
    assert api.get(url, headers={"Range": "bytes=0-9", "If-Range": '"other"'}).content == whole.content
    assert api.get(url, headers={"Range": "nonsense"}).content == whole.content
    unchanged = api.get(url, headers={"If-None-Match": etag})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_sets_of_dance_are_decoded_on_request(api: Api, ray: FakeRay, settings: Settings) -> None:
    """Each stored image holds 2×2 tiles. PNGs are decoded by default, because their readers know no recipe."""
    job_id = api.make(method={"name": "dance"})["id"]
    api.await_job(job_id, lambda _: ray.submissions != [])
    checkpoint(settings, job_id, 2)
    url = f"/v1/jobs/{job_id}/synthetic"

    def count(**params: str) -> int:
        content = io.BytesIO(api.get(url, params=params).content)
        return len(zipfile.ZipFile(content).namelist() if params["format"] == "zip" else np.load(content)["images"])

    assert len(load(api.get(url).content)["images"]) == 10
    assert len(load(api.get(url, params={"images": "decoded"}).content)["images"]) == 40
    assert (count(format="npz"), count(format="npz", images="decoded")) == (10, 40)
    assert (count(format="zip"), count(format="zip", images="stored")) == (40, 10)
    stored, decoded = (
        Image.open(io.BytesIO(api.get(f"/v1/jobs/{job_id}/preview.png", params={"images": form}).content))
        for form in ("stored", "decoded")
    )
    assert decoded.width > stored.width


def test_too_large_decoded_sets_are_refused_before_they_are_decoded(
    api: Api, ray: FakeRay, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "MAX_DECODED_BYTES", 40 * 64 * 4 - 1)
    job_id = api.make(method={"name": "dance"})["id"]
    api.await_job(job_id, lambda _: ray.submissions != [])
    checkpoint(settings, job_id, 2)
    url = f"/v1/jobs/{job_id}/synthetic"
    refused = api.get(url, params={"images": "decoded"})
    assert refused.status_code == 422
    assert "the decoded images of the set take 10240 bytes; the limit is 10239" in refused.text
    assert api.get(url).status_code == 200


def test_formats(api: Api, finished: str) -> None:
    url = f"/v1/jobs/{finished}/synthetic"
    arrays = np.load(io.BytesIO(api.get(url, params={"format": "npz"}).content), allow_pickle=False)
    assert arrays["images"].shape == (10, 1, 8, 8)
    assert json.loads(str(arrays["iteration"])) == 10
    response = api.get(url, params={"format": "zip"})
    assert response.headers["content-type"] == "application/zip"
    assert response.headers["content-disposition"] == f'attachment; filename="{finished}.zip"'
    names = zipfile.ZipFile(io.BytesIO(response.content)).namelist()
    assert len(names) == 10
    assert "train/3/0000.png" in names
    assert api.get(url, params={"format": "gif"}).status_code == 422
