"""What a class is taught, sees and asks, without a browser."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nispa.data.arrays import Array
from nispa.errors import DataError, InputError, UnknownNameError
from nispa.serve import classroom as classes
from nispa.serve.classroom import Classroom
from nispa.serve.lessons import SIDE, centred, drawn, offered
from tests.extent import optional

SMALL: dict[str, Any] = {"hidden": (30, 30, 30), "batch_size": 128}


def cross() -> Array:
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[7:9, 2:14] = image[2:14, 7:9] = 255
    return image


def ring() -> Array:
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[3:13, 3:13] = 255
    image[5:11, 5:11] = 0
    return image


DRAWINGS = [("cross", [cross(), cross()]), ("ring", [ring(), ring()])]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Classroom]:
    """A class with a small network that learns for a short time."""
    monkeypatch.setattr(classes, "NISPA", {**classes.NISPA, "min_phases": 2, "max_phases": 3})
    monkeypatch.setattr(classes, "PLAIN", {**classes.PLAIN, "epochs": 3})
    made = Classroom(**SMALL)
    yield made
    made.close()


def taught(room: Classroom, begin: Callable[[], None]) -> list[dict[str, Any]]:
    """The events of a task."""
    heard: list[dict[str, Any]] = []
    end = room.listen(lambda text: heard.append(json.loads(text)))
    begin()
    assert room._thread is not None
    room._thread.join()
    end()
    return heard


def test_two_tasks_side_by_side(room: Classroom) -> None:
    first = taught(room, lambda: room.teach("digits-0-to-4"))
    order = [event["event"] for event in first]
    assert order[:3] == ["state", "begin", "phase"]
    assert order[-1] == "learned"
    assert order.index("rewired") < order.index("stable") < order.index("learned")
    rewired = next(event for event in first if event["event"] == "rewired")
    states = np.frombuffer(base64.b64decode(rewired["units"]["fc2"]["states"]), np.uint8)
    counts = [rewired["units"]["fc2"][name] for name in ("plastic", "candidate", "stable")]
    assert counts == [int((states == 0).sum()), int((states == 1).sum()), 0]
    assert counts[1] > 0
    change = rewired["changes"]["fc2"]
    assert change["dropped"] == change["grown"] > 0
    assert len(change["dropped_lines"]) == 2 * min(60, change["dropped"])
    stable = next(event for event in first if event["event"] == "stable")
    owned = np.frombuffer(base64.b64decode(stable["units"]["fc2"]["states"]), np.uint8)
    assert set(owned.tolist()) == {0, 2}  # no candidates are left, and the first task's are its
    images = room.taught[0].test[0]
    before = room.nispa.scores(images, 0)
    second = taught(room, lambda: room.teach("digits-0-to-4-turned"))
    assert np.array_equal(room.nispa.scores(images, 0), before)
    told = [event["accuracy"][0] for event in second if event.get("learner") == "nispa"]
    assert set(told) == {room.accuracy["nispa"][0]}  # also while the second was learned
    asked = room.ask(images[0].reshape(SIDE, SIDE), 0, drawing=False)
    assert {name: len(labels) for name, labels in asked.items()} == {"nispa": 5, "plain": 5}
    assert sum(each["probability"] for each in asked["nispa"]) == pytest.approx(1)
    with pytest.raises(InputError, match="learned already"):
        room.teach("digits-0-to-4")
    room.restart()
    assert (room.taught, room.learning, room.nispa.tasks) == ([], None, [])
    with pytest.raises(InputError, match="teach a task first"):
        room.example(0, 0)


def test_drawings_are_a_task_and_are_told_apart(room: Classroom) -> None:
    taught(room, lambda: room.teach_drawings("signs", DRAWINGS))
    assert [task.title for task in room.taught] == ["signs"]
    moved = np.roll(ring(), 2, 1)
    for image, label in ((cross(), "cross"), (moved, "ring")):
        assert room.ask(image, 0, drawing=True)["nispa"][0]["label"] == label


def test_what_cannot_be_taught_is_named(room: Classroom) -> None:
    with pytest.raises(UnknownNameError):
        room.teach("letters")
    empty = np.zeros((SIDE, SIDE), np.uint8)
    for drawings, text in (
        ([("a", [cross()] * 2)], "from 2 to 5 kinds"),
        ([("a", [cross()] * 2), ("a", [ring()] * 2)], "different names"),
        ([("a", [cross()] * 2), ("b", [ring()])], "2 to 12 are needed"),
        ([("a", [cross()] * 2), ("", [ring()] * 2)], "1 to 20 characters"),
        ([("a", [cross()] * 2), ("b", [empty] * 2)], "nothing is drawn"),
    ):
        with pytest.raises(DataError, match=text):
            room.teach_drawings("signs", drawings)
    with pytest.raises(DataError, match="needs a name"):
        room.teach_drawings("", DRAWINGS)
    assert room.learning is None
    room.teach("digits-0-to-4")
    with pytest.raises(InputError, match="wait until it is done"):
        room.teach("digits-5-to-9")
    room.restart()  # in the middle
    assert (room.taught, room.learning) == ([], None)


def test_a_drawing_is_brought_to_the_size_of_a_digit() -> None:
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[2:6, 3:5] = 255  # 4 high, 2 wide: becomes four times as large
    edge = [0, 0, 32, 96, 159, 223, 255, 255]  # 2 wide become 8: bilinear, in steps of a quarter
    wanted = np.array([*edge, *edge[::-1]])
    assert (centred(image) == wanted).all()
    assert (wanted == centred(np.rot90(image).copy()).T).all()


def test_images_made_of_drawings_differ_and_test_ones_are_others() -> None:
    task = drawn("drawn-1", "signs", DRAWINGS)
    images, labels = task.train
    assert images.shape == (160, SIDE, SIDE)
    assert labels.tolist() == ["cross"] * 80 + ["ring"] * 80
    distinct = {image.tobytes() for image in images}
    assert len(distinct) == 160
    assert not distinct & {image.tobytes() for image in task.test[0]}


def test_the_tasks_offered() -> None:
    tasks = {task.key: task for task in offered(None)}
    assert list(tasks) == [
        "digits-0-to-4", "digits-5-to-9", "digits-0-to-4-turned", "digits-5-to-9-turned"
    ]  # fmt: skip
    plain, turned = tasks["digits-0-to-4"], tasks["digits-0-to-4-turned"]
    assert np.array_equal(np.rot90(plain.test[0], 1, (1, 2)), turned.test[0])
    assert plain.labels == ("0", "1", "2", "3", "4")
    assert set(plain.test[1]) == set(plain.labels)


def test_clothes_where_their_data_are(data_dir: Path) -> None:
    assert len(offered(data_dir)) == 6


def test_replies_of_the_page(room: Classroom) -> None:
    optional("starlette")
    optional("uvicorn")
    from starlette.testclient import TestClient

    from nispa.serve.gate import Door
    from nispa.serve.play_app import application
    from nispa.serve.running import LOCAL

    app, _ = application(room, Door(LOCAL, None))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        page = client.get("/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for name in ("play.css", "play.js", "network.js", "pad.js", "tour.js"):
            part = client.get(f"/{name}")
            assert part.status_code == 200
            assert "://" not in part.text  # nothing is asked of other machines
        for path in ("/play.py", "/..%2fgate.py", "/nothing", "/__init__.py"):
            assert client.get(path).status_code == 404
        assert client.get("/", headers={"host": "evil.example"}).status_code == 403
        image = cross().flatten().tolist()
        for path, value, status in (
            ("/api/teach", {"task": "letters"}, 404),
            ("/api/teach", {"name": "x"}, 400),
            ("/api/teach", {"name": "x", "drawings": [{"label": 1, "images": []}]}, 400),
            ("/api/teach", {"name": "x", "drawings": [[]]}, 400),
            ("/api/ask", {"image": image, "task": 0}, 400),
            ("/api/ask", {"image": image[1:], "task": 0}, 400),
            ("/api/ask", {"image": [1.5] * 256, "task": 0}, 400),
            ("/api/ask", {"image": image, "task": -1}, 400),
        ):
            reply = client.post(path, json=value)
            assert (reply.status_code, list(reply.json())) == (status, ["error"]), (path, value)
        assert client.get("/api/example?task=a&number=1").status_code == 400
        assert client.post("/api/teach", content=b"{}").status_code == 415
        drawings = [
            {"label": label, "images": [each.flatten().tolist() for each in images]}
            for label, images in DRAWINGS
        ]
        reply = client.post("/api/teach", json={"name": "signs", "drawings": drawings})
        assert (reply.status_code, reply.json()) == (202, {"learning": "signs"})
        assert room._thread is not None
        room._thread.join()
        told = client.post("/api/ask", json={"image": image, "task": 0}).json()
        assert told["nispa"][0]["label"] == "cross"
        assert client.get("/api/example?task=0&number=3").json()["label"] in ("cross", "ring")
        assert client.post("/api/restart", json={}).json() == {"learning": None}


def test_a_page_that_reads_slowly_misses_nothing(room: Classroom) -> None:
    optional("starlette")
    import asyncio

    from nispa.serve.play_app import QUIET_S, Play

    play = Play(room)

    async def read() -> list[str]:
        stream = play.stream()
        found = [await anext(stream)]
        for number in range(3):
            found.append(await anext(stream))
            room._tell("phase", phase=number)
            await asyncio.sleep(1.5 * QUIET_S)  # busy with what it got
        play.closing.set()
        found += [text async for text in stream]
        return found

    texts = asyncio.run(read())
    assert texts[0].startswith("retry:")
    told = [json.loads(text.removeprefix("data: ")) for text in texts[1:]]
    assert [event["event"] for event in told] == ["state", "phase", "phase"]
    assert room._listeners == []
