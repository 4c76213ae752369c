"""Requests and replies: what is taken, what is refused and how, and that no error shows code."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nispa
from tests.extent import optional

optional("starlette")
optional("uvicorn")
from starlette.testclient import TestClient  # noqa: E402

from nispa.serve.app import Limits, application  # noqa: E402
from nispa.serve.gate import Door  # noqa: E402
from nispa.serve.running import LOCAL, door_for  # noqa: E402
from nispa.serve.service import Service, Setup  # noqa: E402

from .small import examples, picture, saved  # noqa: E402

IMAGES, _ = examples((0, 1))
ONE = IMAGES[0].tolist()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("served") / "learner.safetensors")


def client_of(path: Path, door: Door | None = None, **limits: Any) -> TestClient:
    service = Service(Setup(path, teach="pixels" not in limits))
    app = application(service, Limits(**limits), door or Door(LOCAL, None))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def client(file: Path) -> Iterator[TestClient]:
    with client_of(file) as found:
        yield found


def test_what_the_learner_is(client: TestClient) -> None:
    told = client.get("/").json()
    assert told["tasks"] == [{"task": 1, "name": "first", "labels": [0, 1]}]
    assert (told["method"], told["input_shape"]) == ("nispa", [1, 4, 4])
    assert (told["classes"], told["classes_free"], told["teach"]) == (8, 6, True)
    assert client.get("/health").json() == {"status": "ok", "tasks": 1}


def test_every_way_to_send_an_image_gives_the_learners_answer(
    client: TestClient, file: Path
) -> None:
    learner = nispa.Learner.load(file)
    shares = learner.predict_proba(IMAGES[:1], 0)[0]
    order = np.argsort(-shares)
    wanted = {"labels": [{"label": int(k), "probability": float(shares[k])} for k in order]}
    png = picture(IMAGES[0])
    kind = {"content-type": "image/png"}
    assert client.post("/predict?top=2", content=png, headers=kind).json() == wanted
    coded = base64.b64encode(png).decode()
    for image in (ONE, coded, f"data:image/png;base64,{coded}", [[[v] for v in r] for r in ONE]):
        assert client.post("/predict", json={"image": image, "top": 2}).json() == wanted
    assert client.post("/predict?top=2&task=first", json=ONE).json() == wanted
    floats = (IMAGES[0] / 255).astype(np.float32).tolist()
    assert client.post("/predict?top=2", json={"image": floats}).json() == wanted
    two = client.post("/predict", json={"images": [ONE, ONE], "task": 1, "top": 2}).json()
    assert two["images"][0] == two["images"][1]
    jpeg = client.post("/predict", content=picture(IMAGES[0], "JPEG"),
                       headers={"content-type": "image/jpeg"}).json()  # fmt: skip
    assert jpeg["labels"][0]["label"] == wanted["labels"][0]["label"]


def test_whole_numbers_can_be_said_to_be_floats(client: TestClient, file: Path) -> None:
    black_and_white = (IMAGES[0] > 128).astype(int).tolist()
    asked = {"image": black_and_white, "type": "float32", "top": 1}
    best = client.post("/predict", json=asked).json()["labels"][0]["probability"]
    learner = nispa.Learner.load(file)
    assert best == learner.predict_proba(np.array(black_and_white, np.float32)[None], 0).max()


def test_pictures_of_any_size_are_fitted_if_wanted(file: Path) -> None:
    large = np.kron(IMAGES[0], np.ones((5, 5), np.uint8))
    colour = np.stack([large] * 3, axis=2)
    kind = {"content-type": "image/png"}
    with client_of(file, pixels=1000) as client:
        reply = client.post("/predict", content=picture(large), headers=kind)
        assert reply.status_code == 400
        assert "20×20 pixels" in reply.json()["error"]
    with client_of(file, pixels=1000, fit=True) as client:
        for pixels in (large, colour):
            reply = client.post("/predict", content=picture(pixels), headers=kind)
            assert reply.json()["labels"][0]["label"] == 0
        wide = np.zeros((1, 1001), np.uint8)
        reply = client.post("/predict", content=picture(wide), headers=kind)
        assert (reply.status_code, "1001×1" in reply.json()["error"]) == (413, True)


JSON = {"content-type": "application/json"}
BAD: list[tuple[str, Any, int]] = [
    ("/predict", b"{", 400),
    ("/predict", b"[" * 100_000, 400),
    ("/predict", b'{"image": [[NaN]]}', 400),
    ("/predict", b'{"image": ' + b"[" * 9 + b"1" + b"]" * 9 + b"}", 400),
    ("/predict", b"7", 400),
    ("/predict", b"\xff\xfe", 400),
    ("/predict", b'{"image": ' + b"9" * 10_000 + b"}", 400),
    ("/predict", {}, 400),
    ("/predict", {"image": ONE, "colour": 1}, 400),
    ("/predict", {"image": ONE, "images": [ONE]}, 400),
    ("/predict", {"image": [[1, 2], [3]]}, 400),
    ("/predict", {"image": [[-1, 0, 0, 0]] * 4}, 400),
    ("/predict", {"image": [["a", 0, 0, 0]] * 4}, 400),
    ("/predict", {"image": {"a": 1}}, 400),
    ("/predict", {"image": None}, 400),
    ("/predict", {"image": [[1e300] * 4] * 4}, 400),
    ("/predict", {"image": "no picture"}, 400),
    ("/predict", {"image": base64.b64encode(b"GIF89a").decode()}, 400),
    ("/predict", {"images": []}, 400),
    ("/predict", {"images": [ONE] * 5000}, 413),
    ("/predict", {"image": ONE, "type": "int4"}, 400),
    ("/predict", {"image": [[0.5] * 4] * 4, "type": "uint8"}, 400),
    ("/predict", {"image": ONE, "top": 0}, 400),
    ("/predict", {"image": ONE, "top": True}, 400),
    ("/predict", {"image": ONE, "task": 2}, 404),
    ("/predict?task=2", ONE, 404),
    ("/predict?colour=2", ONE, 400),
    ("/tasks", [], 400),
    ("/tasks", {"name": "x"}, 400),
    ("/tasks", {"name": 7, "images": [ONE], "labels": [0]}, 400),
    ("/tasks", {"name": "x", "images": [ONE], "labels": [0, 1]}, 400),
    ("/tasks", {"name": "x", "images": [ONE, ONE], "labels": [0, "a"]}, 400),
    ("/tasks", {"name": "x", "images": [ONE, ONE], "labels": [0, 2**64]}, 400),
    ("/tasks", {"name": "x", "images": [ONE, ONE], "labels": ["", "a"]}, 400),
    ("/tasks", {"name": "first", "images": [ONE, ONE], "labels": ["b", "a"]}, 400),
    ("/tasks", {"examples": [{"label": 1}]}, 400),
    ("/tasks", {"examples": [ONE]}, 400),
    ("/nothing", {}, 404),
    ("/health", {}, 405),
]


@pytest.mark.parametrize(("path", "body", "status"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_used_is_named(
    client: TestClient, path: str, body: Any, status: int
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = client.post(path, content=content, headers=JSON)
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["error"]
    assert 5 < len(reply.json()["error"]) < 1000
    assert "Traceback" not in reply.text
    assert client.get("/jobs").json() == {"jobs": []}


def test_bodies_have_a_type_and_a_largest_size(file: Path) -> None:
    with client_of(file, body_bytes=1000) as client:
        assert client.post("/predict", content=b"x").status_code == 415
        kind = {"content-type": "text/plain"}  # which a page of another site may send
        assert client.post("/tasks", content=b"{}", headers=kind).status_code == 415
        for path in ("/predict", "/tasks"):
            told = client.post(path, content=b"[" + b" " * 1000, headers=JSON)
            assert (told.status_code, "1,000 bytes" in told.json()["error"]) == (413, True)
            untold = client.post(path, content=iter([b" " * 600] * 2), headers=JSON)
            assert untold.status_code == 413


def test_only_this_machine_under_its_own_name(client: TestClient) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", ""):
        assert client.get("/", headers={"host": host}).status_code == 403
    for host in ("localhost:8765", "127.0.0.1:1", "[::1]:80"):
        assert client.get("/", headers={"host": host}).status_code == 200
    headers = {"origin": "https://evil.example"}
    assert client.get("/", headers=headers).status_code == 403
    assert client.get("/", headers={"origin": "http://127.0.0.1"}).status_code == 200


def test_other_machines_need_a_token(file: Path) -> None:
    token = "a-token-of-enough-characters"
    with client_of(file, door_for("0.0.0.0", token)) as client:
        refused = client.get("/health")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        for wrong in (token, "Bearer ", f"Bearer {token}x", f"Basic {token}", "Bearer \xff"):
            given = {b"authorization": wrong.encode("latin-1")}
            assert client.get("/health", headers=given).status_code == 401
        named = {"authorization": f"Bearer {token}", "host": "any.example"}
        assert client.get("/health", headers=named).status_code == 200


def test_an_unforeseen_error_shows_no_code(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(Service, "answer", fail)
    reply = client.post("/predict", json=ONE)
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert list(reply.json()) == ["error"]


@pytest.mark.ci
def test_a_task_is_taught_and_its_job_says_how_it_went(tmp_path: Path) -> None:
    file = saved(tmp_path / "learner.safetensors")
    images, labels = examples((2, 3))
    sent = [
        {"label": f"row {label}", "image": base64.b64encode(picture(image)).decode()}
        for image, label in zip(images, labels, strict=True)
    ]
    with client_of(file) as client:
        reply = client.post("/tasks", json={"name": "rows", "examples": sent})
        assert (reply.status_code, reply.headers["location"]) == (202, "/jobs/1")
        twice = client.post("/tasks", json={"name": "rows", "examples": sent})
        assert (twice.status_code, "called 'rows' already" in twice.json()["error"]) == (400, True)
        until = time.monotonic() + 120
        while (job := client.get("/jobs/1").json())["state"] not in ("learned", "failed"):
            assert client.post("/predict?task=1", json=ONE).json()["labels"][0]["label"] == 0
            assert time.monotonic() < until
        assert (job["state"], job["task"]) == ("learned", 2), job
        assert job["old_answers"]["unchanged"] is True
        best = client.post("/predict", json={"image": sent[0]["image"], "task": "rows"}).json()
        assert best["labels"][0]["label"] in ("row 2", "row 3")
        assert client.get("/").json()["tasks"][1]["labels"] == ["row 2", "row 3"]
        assert client.delete("/jobs/1").json()["state"] == "learned"
        assert client.delete("/jobs/9").status_code == 404
    assert nispa.Learner.load(file).task_names == ["first", "rows"]
