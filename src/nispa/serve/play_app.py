"""The application of ``nispa play``: one page, what it asks for, and a stream of events.

GET  /              the page; /play.css and the scripts beside it
GET  /api/events    server-sent events: the present state, then whatever happens
POST /api/teach     {"task": KEY}, or {"name": …, "drawings": [{"label": …, "images": […]}]}
POST /api/ask       {"image": [256 numbers], "task": 0} -> labels of both learners
GET  /api/example   ?task=0&number=3 -> a test image
POST /api/restart   begins again
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

from nispa.data.arrays import Array
from nispa.errors import DataError, needs
from nispa.serve.bodies import entries, parse
from nispa.serve.classroom import Classroom
from nispa.serve.gate import Door, Gate, body_of, handlers
from nispa.serve.lessons import MOST_DRAWN, MOST_KINDS, SIDE

with needs("serve", "serving"):
    import anyio
    import anyio.to_thread
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

FILES = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
MAX_BYTES = 2**20
MAX_WATCHERS = 64
MAX_BEHIND = 500
"""Events that a page may be behind before it must begin again."""

QUIET_S = 0.5
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
}


class Play:
    """The replies of a classroom."""

    def __init__(self, room: Classroom) -> None:
        """The replies of ``room``."""
        self.room = room
        self.closing = threading.Event()
        self._watching = 0

    async def file(self, request: Request) -> Response:
        """The page and its parts."""
        name = request.path_params.get("name", "play.html")
        kind = TYPES.get(Path(name).suffix)
        if kind is None or name not in {file.name for file in FILES.iterdir()}:
            raise HTTPException(404, "there is no such page")
        return Response((FILES / name).read_bytes(), media_type=f"{kind}; charset=utf-8")

    async def nothing(self, request: Request) -> Response:
        """What browsers ask for by themselves."""
        return Response(status_code=204)

    async def events(self, request: Request) -> Response:
        """The present state, then whatever happens."""
        if self._watching >= MAX_WATCHERS:
            raise HTTPException(503, f"{MAX_WATCHERS} pages watch already")
        return StreamingResponse(self.stream(), media_type="text/event-stream")

    async def stream(self) -> AsyncIterator[str]:
        """Events as lines of text, until the server ends or the page is gone."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[str | None] = asyncio.Queue()

        def take(text: str) -> None:
            if waiting.qsize() < MAX_BEHIND:
                waiting.put_nowait(text)
            else:
                waiting.put_nowait(None)  # it comes back by itself and begins anew

        def listener(text: str) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(take, text)

        end = self.room.listen(listener)
        self._watching += 1
        try:
            yield "retry: 1000\n\n"
            while not self.closing.is_set():
                text: str | None = ""
                with anyio.move_on_after(QUIET_S):  # to see whether the server ends
                    text = await waiting.get()
                if text is None:
                    return
                if text:
                    yield f"data: {text}\n\n"
        finally:
            self._watching -= 1
            end()

    async def state(self, request: Request) -> Response:
        """The present state."""
        return JSONResponse(self.room.state())

    async def teach(self, request: Request) -> Response:
        """Begins to teach a task."""
        example = '{"task": "digits-0-to-4"}'
        given = entries(await _json(request), ("task", "name", "drawings"), example)
        if isinstance(given.get("task"), str):
            self.room.teach(given["task"])
        else:
            name, drawings = given.get("name"), given.get("drawings")
            if not isinstance(name, str) or not isinstance(drawings, list):
                raise DataError(f"give a task, such as {example}, or a name and drawings")
            await anyio.to_thread.run_sync(
                self.room.teach_drawings, name, [_drawings(each) for each in drawings[:99]]
            )
        return JSONResponse({"learning": self.room.learning}, 202)

    async def ask(self, request: Request) -> Response:
        """Labels of an image, by both learners."""
        example = '{"image": [0, 255, …], "task": 0}'
        given = entries(await _json(request), ("image", "task", "drawing"), example)
        image, task = _image(given.get("image")), _number(given.get("task"), "task")
        drawing = given.get("drawing", True) is True

        def work() -> dict[str, Any]:
            return self.room.ask(image, task, drawing=drawing)

        return JSONResponse(await anyio.to_thread.run_sync(work))

    async def example(self, request: Request) -> Response:
        """A test image of a task."""
        task, number = (
            _number(int(text) if text.isdecimal() and len(text) < 10 else None, name)
            for name, text in (
                (name, request.query_params.get(name, "")) for name in ("task", "number")
            )
        )
        image, label = self.room.example(task, number)
        return JSONResponse({"image": image.flatten().tolist(), "label": label})

    async def restart(self, request: Request) -> Response:
        """Begins again."""
        await _json(request)
        await anyio.to_thread.run_sync(self.room.restart)
        return JSONResponse({"learning": None})


async def _json(request: Request) -> Any:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "the header Content-Type must be application/json")
    return parse(await body_of(request, MAX_BYTES))


def _image(value: Any) -> Array:
    """A drawing from a list of numbers."""
    count = SIDE * SIDE
    if not isinstance(value, list) or len(value) != count:
        raise DataError(f"an image must be a list of {count} whole numbers from 0 to 255")
    if not all(type(each) is int and 0 <= each <= 255 for each in value):
        raise DataError("an image must have whole numbers from 0 to 255")
    return np.array(value, np.uint8).reshape(SIDE, SIDE)


def _number(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 10**9:
        raise DataError(f"{name} must be a whole number from 0")
    return value


def _drawings(value: Any) -> tuple[str, list[Array]]:
    """A label and its drawings."""
    given = entries(value, ("label", "images"), '{"label": "star", "images": [[0, …], …]}')
    label, images = given.get("label"), given.get("images")
    if not isinstance(label, str) or not isinstance(images, list) or len(images) > MOST_DRAWN:
        raise DataError(
            f"each of at most {MOST_KINDS} kinds needs a label and at most {MOST_DRAWN} images"
        )
    return label, [_image(each) for each in images]


def application(room: Classroom, door: Door) -> tuple[Gate, threading.Event]:
    """The application of a classroom, and what to set when the server is to end."""
    play = Play(room)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        play.closing.set()
        await anyio.to_thread.run_sync(room.close)

    app = Starlette(
        routes=[
            Route("/", play.file),
            Route("/api/events", play.events),
            Route("/api/state", play.state),
            Route("/api/example", play.example),
            Route("/api/teach", play.teach, methods=["POST"]),
            Route("/api/ask", play.ask, methods=["POST"]),
            Route("/api/restart", play.restart, methods=["POST"]),
            Route("/favicon.ico", play.nothing),
            Route("/{name}", play.file),
        ],
        exception_handlers=handlers(),
        lifespan=lifespan,
    )
    return Gate(app, door, HEADERS), play.closing
