"""The application: addresses, what they take, what they return.

GET    /            the learner: method, shape of an image, tasks with their labels
GET    /health      whether it answers
POST   /predict     an image -> labels with probabilities
POST   /tasks       examples with labels and a name -> a job that learns them
GET    /jobs        all jobs, and /jobs/N one of them
DELETE /jobs/N      calls a job off
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from nispa.errors import DataError, needs
from nispa.predicting import MAX_TOP
from nispa.serve.bodies import PICTURES, Intake, TooLargeError, entries, lesson, parse
from nispa.serve.gate import Door, Gate, body_of, handlers
from nispa.serve.service import Service

with needs("serve", "serving"):
    import anyio
    import anyio.to_thread
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

MAX_ASKED = 4096
MAX_PREDICT_BYTES = 16 * 2**20
MAX_WAITING = 256
"""Predictions that may wait for those before them."""

R = TypeVar("R")
EXAMPLE = '{"image": [[0, 255], [0, 255]], "task": 1, "top": 3}'


@dataclass(frozen=True)
class Limits:
    """What a server takes at most.

    Attributes:
        body_bytes: Of the body of a task; bodies to predict have at most 16 MiB of it.
        pixels: Of one picture.
        fit: Whether to cut, scale and grey pictures until they fit the network.
    """

    body_bytes: int = 64 * 2**20
    pixels: int = 4_000_000
    fit: bool = False


class Server:
    """The replies of a service."""

    def __init__(self, service: Service, limits: Limits) -> None:
        """The replies of ``service``; bodies beyond ``limits`` are refused."""
        self.service, self.limits = service, limits
        shape = service.learner.method.problem.input_shape
        self.intake = Intake(shape, limits.pixels, limits.fit)
        self._lane = anyio.CapacityLimiter(1)  # a network computes in one thread at a time
        self._intake_lane = anyio.CapacityLimiter(1)
        self._uploads = anyio.CapacityLimiter(2)
        self._waiting = 0

    async def about(self, request: Request) -> Response:
        """What the learner is and knows."""
        return JSONResponse(self.service.about())

    async def health(self, request: Request) -> Response:
        """Whether the server answers."""
        return JSONResponse({"status": "ok", "tasks": len(self.service.learner.tasks)})

    async def predict(self, request: Request) -> Response:
        """Labels of an image, or of several."""
        kind = _kind(request, (*PICTURES, "application/json"))
        if self._waiting >= MAX_WAITING:
            raise HTTPException(503, f"{MAX_WAITING} requests wait", {"retry-after": "1"})
        self._waiting += 1
        try:
            content = await body_of(request, min(MAX_PREDICT_BYTES, self.limits.body_bytes))
            asked = _asked(request)
            reply = await _in_thread(self._lane, self._predict, kind, content, asked)
        finally:
            self._waiting -= 1
        return JSONResponse(reply)

    def _predict(self, kind: str, content: bytes, asked: dict[str, Any]) -> dict[str, Any]:
        single = True
        if kind in PICTURES:
            images = self.intake.picture(content)[None]
            first: bool | None = True
        else:
            value = parse(content)
            if isinstance(value, list):
                value = {"image": value}
            given = entries(value, ("image", "images", "type", "task", "top"), EXAMPLE)
            asked = {**asked, **{name: given[name] for name in ("task", "top") if name in given}}
            single = "image" in given
            if single and "images" in given:
                raise DataError("give image or images, not both")
            values = [given["image"]] if single else given.get("images")
            images, first = self.intake.images(values, given.get("type"))
        if len(images) > MAX_ASKED:
            raise TooLargeError(f"{len(images):,} images are more than {MAX_ASKED:,}")
        top = asked.get("top", 1)
        if isinstance(top, str) and top.isdecimal() and len(top) < 10:
            top = int(top)
        if type(top) is not int or not 1 <= top <= MAX_TOP:
            raise DataError(f"top must be a whole number from 1 to {MAX_TOP}")
        found = self.service.answer(images, first, asked.get("task"), top)
        return found[0] if single else {"images": found}

    async def teach(self, request: Request) -> Response:
        """Takes the examples of a task; learning begins when those before it are learned."""
        _kind(request, ("application/json",))
        self.service.check_room()
        try:
            self._uploads.acquire_nowait()
        except anyio.WouldBlock:
            raise HTTPException(
                429, "two tasks are being sent already; try again later", {"retry-after": "5"}
            ) from None
        try:
            content = await body_of(request, self.limits.body_bytes)
            made = await _in_thread(
                self._intake_lane, lambda: self.service.teach(lesson(self.intake, parse(content)))
            )
        finally:
            self._uploads.release()
        return JSONResponse(made.as_json(), 202, {"location": f"/jobs/{made.number}"})

    async def jobs(self, request: Request) -> Response:
        """All jobs."""
        return JSONResponse({"jobs": [job.as_json() for job in self.service.jobs]})

    async def job(self, request: Request) -> Response:
        """One job."""
        return JSONResponse(self.service.job(request.path_params["number"]).as_json())

    async def drop(self, request: Request) -> Response:
        """Calls a job off."""
        number = request.path_params["number"]
        job = await anyio.to_thread.run_sync(self.service.drop, number)
        return JSONResponse(job.as_json(), 202)


def application(service: Service, limits: Limits, door: Door) -> Gate:
    """The application of a service; its end closes the service."""
    server = Server(service, limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(service.close)

    return Gate(
        Starlette(
            routes=[
                Route("/", server.about),
                Route("/health", server.health),
                Route("/predict", server.predict, methods=["POST"]),
                Route("/tasks", server.teach, methods=["POST"]),
                Route("/jobs", server.jobs),
                Route("/jobs/{number:int}", server.job, methods=["GET"]),
                Route("/jobs/{number:int}", server.drop, methods=["DELETE"]),
            ],
            exception_handlers=handlers(),
            lifespan=lifespan,
        ),
        door,
    )


def _kind(request: Request, known: tuple[str, ...]) -> str:
    """The type of a body.

    A page of another site cannot send one of these without asking first, which is refused.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in known:
        raise HTTPException(415, f"the header Content-Type must be {' or '.join(known)}")
    return kind


def _asked(request: Request) -> dict[str, Any]:
    """Task and number of labels in the address."""
    foreign = sorted(set(request.query_params) - {"task", "top"})
    if foreign:
        raise DataError(f"unknown parameter '{foreign[0][:40]}'; known: task, top")
    return dict(request.query_params)


async def _in_thread(lane: anyio.CapacityLimiter, work: Callable[..., R], *args: Any) -> R:
    return await anyio.to_thread.run_sync(functools.partial(work, *args), limiter=lane)
