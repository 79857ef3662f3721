from __future__ import annotations

import io
import json
import zipfile
from http.client import HTTPConnection

import numpy as np
import pytest
from PIL import Image

from server.settings import Settings
from tests.server.conftest import SPEC, Api, FakeRay, running


def npz(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def image_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def png(level: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side), level).save(buffer, "PNG")
    return buffer.getvalue()


LABELS = np.array([0, 1, 0, 1])
ARRAYS = npz(images=np.zeros((4, 8, 8), dtype=np.uint8), labels=LABELS)
FORM_HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.npz"\r\n\r\n'
FOLDER = image_zip({f"train/{name}/{i}.png": png(i) for name in ("cat", "dog") for i in range(3)})


def test_built_in_datasets_are_listed(api: Api) -> None:
    listed = {dataset["id"]: dataset for dataset in api.get("/v1/datasets").json()["data"]}
    assert set(listed) == {"digits", "mnist", "fashion_mnist", "svhn", "cifar10", "cifar100"}
    assert listed["digits"]["source"] == "builtin"
    assert listed["digits"]["info"]["test_count"] == 360
    assert api.get("/v1/datasets/digits").json() == listed["digits"]
    assert api.delete("/v1/datasets/digits").status_code == 409
    assert api.get("/v1/datasets/ds_nowhere").status_code == 404
    assert api.delete("/v1/datasets/ds_nowhere").status_code == 404


@pytest.mark.parametrize(("filename", "content", "classes"), [("mine.npz", ARRAYS, 2), ("C:\\pets\\My Pets.ZIP", FOLDER, 2)])
def test_upload_use_and_delete(api: Api, ray: FakeRay, settings: Settings, filename: str, content: bytes, classes: int) -> None:
    response = api.post("/v1/datasets", files={"file": (filename, content)})
    assert response.status_code == 201, response.text
    dataset = response.json()
    assert dataset["name"] == filename.rpartition("\\")[2]
    assert (dataset["source"], dataset["size"]) == ("uploaded", len(content))
    assert len(dataset["info"]["class_names"]) == classes
    assert api.get(f"/v1/datasets/{dataset['id']}").json() == dataset
    assert api.get("/v1/datasets").json()["data"][-1] == dataset

    job = api.make(dataset={"id": dataset["id"]})
    api.await_job(job["id"], lambda _: ray.submissions != [])
    assert api.delete(f"/v1/datasets/{dataset['id']}").status_code == 409
    api.post(f"/v1/jobs/{job['id']}/cancel")
    api.await_status(job["id"], "cancelled")
    assert api.delete(f"/v1/datasets/{dataset['id']}").status_code == 204
    assert list(settings.roots.uploads.iterdir()) == []
    assert api.get(f"/v1/datasets/{dataset['id']}").status_code == 404


@pytest.mark.parametrize(
    ("filename", "content"),
    [
        ("a.tar", b"x"),
        ("", b"x"),
        ("a.zip", b"no archive"),
        ("a.npz", b"no archive"),
        ("a.zip", image_zip({"readme.txt": b""})),
        ("a.npz", npz(images=np.zeros((4, 8, 8)), labels=LABELS)),  # float
        ("a.npz", npz(images=np.zeros((4, 8, 8), dtype=np.uint8))),
        ("a.npz", npz(images=np.zeros((4, 8, 8), dtype=np.uint8), labels=np.array([{}, {}, {}, {}], dtype=object))),
    ],
)
def test_refuses_and_discards_invalid_uploads(api: Api, settings: Settings, filename: str, content: bytes) -> None:
    response = api.post("/v1/datasets", files={"file": (filename, content)})
    assert response.status_code == 422
    problem = response.json()
    assert problem["errors"][0]["loc"] in ("file", "dataset", "")
    assert problem["errors"][0]["msg"]
    assert list(settings.roots.uploads.iterdir()) == []
    assert len(api.get("/v1/datasets").json()["data"]) == 6


def test_accepts_images_that_need_image_size(api: Api) -> None:
    large = image_zip({f"train/{name}/{i}.png": png(i, side=600) for name in ("cat", "dog") for i in range(3)})
    dataset = api.post("/v1/datasets", files={"file": ("large.zip", large)}).json()
    assert dataset["info"] is None
    refused = api.post("/v1/jobs", json=SPEC | {"dataset": {"id": dataset["id"]}})
    assert "set dataset.image_size" in refused.json()["errors"][0]["msg"]
    assert api.make(dataset={"id": dataset["id"], "image_size": 8})["status"] == "queued"


def test_upload_can_have_a_name(api: Api) -> None:
    response = api.post("/v1/datasets", files={"file": ("a.npz", ARRAYS)}, data={"name": "Pets"})
    assert response.json()["name"] == "Pets"


def test_refuses_upload_larger_than_limit(settings: Settings, ray: FakeRay) -> None:
    with running(settings.model_copy(update={"max_upload_bytes": 100}), ray) as api:
        response = api.post("/v1/datasets", files={"file": ("a.npz", ARRAYS)})
        assert response.status_code == 413
        assert "100 bytes" in response.json()["detail"]
        assert list(settings.roots.uploads.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "content_type"), [("/v1/jobs", "application/json"), ("/v1/datasets", "multipart/form-data; boundary=x")]
)
@pytest.mark.parametrize("announced", [True, False])
def test_refuses_body_by_content_length(settings: Settings, ray: FakeRay, path: str, content_type: str, announced: bool) -> None:
    """By Content-Length, or without one at the first byte beyond the limit: neither body is sent completely."""
    with running(settings.model_copy(update={"max_upload_bytes": 1 << 20}), ray) as api:
        connection = HTTPConnection(api.base_url.host, api.base_url.port, timeout=20)
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", content_type)
        if announced:
            connection.putheader("Content-Length", str(1 << 40))
            connection.endheaders()
        else:
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()
            for chunk in (FORM_HEAD, *[bytes(1 << 16)] * 18):
                connection.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        response = connection.getresponse()
        problem = json.loads(response.read())
        connection.close()
    assert (response.status, response.headers["content-type"]) == (413, "application/problem+json")
    assert "the limit is" in problem["detail"]
