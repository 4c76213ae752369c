"""What stands in front of an application: who may ask, how large a body is, and errors as JSON."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nispa.errors import NispaError, NotLearnedError, OutputError, UnknownNameError, needs
from nispa.files import one_line
from nispa.serve.bodies import TooLargeError
from nispa.serve.service import QueueFullError

with needs("serve", "serving"):
    import anyio
    from starlette.datastructures import Headers
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger("nispa.serve")
BODY_S = 60.0
"""How long a client may take to send a body."""

MEANINGS: Mapping[type[NispaError], int] = {
    TooLargeError: 413,
    QueueFullError: 429,
    UnknownNameError: 404,
    NotLearnedError: 404,
    OutputError: 500,
}
"""HTTP statuses of errors; any other one is 400."""


@dataclass(frozen=True)
class Door:
    """Who may ask.

    Attributes:
        hosts: Names under which the server may be addressed, without port; None for any, which
            needs a token. A page of another site can reach a server on this machine by a name of
            its own, but not under one of these.
        token: What a client must show; None asks for none.
    """

    hosts: frozenset[str] | None
    token: str | None


class Gate:
    """Refuses who may not ask, and turns errors into JSON."""

    def __init__(self, app: ASGIApp, door: Door, headers: Mapping[str, str] = {}) -> None:
        """A gate.

        Args:
            app: The application behind it.
            door: Who may ask.
            headers: Added to every reply.
        """
        self.app, self.door = app, door
        self.headers = [
            (name.encode(), value.encode())
            for name, value in {"x-content-type-options": "nosniff", **headers}.items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = ended = False

        async def sending(message: Message) -> None:
            nonlocal begun, ended
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", []), *self.headers]
            elif message["type"] == "http.response.body":
                ended = not message.get("more_body", False)
            await send(message)

        refused = self._refused(Headers(scope=scope))
        try:
            if refused is not None:
                await refused(scope, receive, sending)
            else:
                await self.app(scope, receive, sending)
        except ClientDisconnect:
            return
        except Exception as error:  # a client never sees a traceback; the log does
            if not isinstance(error, NispaError):
                LOG.exception("unforeseen error")
            if begun and not ended:
                raise  # the client must see that the reply is not whole
            if not begun:
                await reply_to(error)(scope, receive, sending)

    def _refused(self, headers: Headers) -> JSONResponse | None:
        hosts = self.door.hosts
        host = headers.get("host", "")
        if hosts is not None and _name(host) not in hosts:
            return failure(
                403, f"this server is not called '{one_line(host, 60)}'; use http://127.0.0.1"
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return failure(403, "pages of other sites may not use this server")
        if self.door.token is not None:
            shown = headers.get("authorization", "")
            wanted = f"Bearer {self.door.token}"
            if not hmac.compare_digest(shown.encode(), wanted.encode()):
                return failure(
                    401,
                    "this server needs a token: send the header 'Authorization: Bearer TOKEN'",
                    {"www-authenticate": "Bearer"},
                )
        return None


def _name(host: str) -> str:
    """A host without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()


def failure(status: int, text: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A reply that says what went wrong."""
    return JSONResponse({"error": text}, status, headers)


def reply_to(error: Exception) -> JSONResponse:
    """The reply to an error."""
    if isinstance(error, NispaError):
        status = next((code for kind, code in MEANINGS.items() if isinstance(error, kind)), 400)
        headers = {"retry-after": "5"} if status == 429 else None
        return failure(status, one_line(str(error), 1000), headers)
    if isinstance(error, HTTPException):
        return failure(error.status_code, one_line(str(error.detail), 1000), error.headers)
    return failure(500, "something unforeseen went wrong; the server's log says what")


def handlers() -> dict[Any, Callable[[Request, Exception], Any]]:
    """Handlers of errors; one that is not foreseen goes on to the gate, which logs it."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return reply_to(error)

    return {NispaError: answer, HTTPException: answer, Exception: answer}


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        TooLargeError: It has more bytes than allowed; no more than these are read.
        HTTPException: It takes too long.
    """
    told = request.headers.get("content-length", "")
    too_large = TooLargeError(f"the body is larger than {most:,} bytes, the most taken")
    if told.isdecimal() and len(told) < 20 and int(told) > most:
        raise too_large
    parts, size = [], 0
    try:
        with anyio.fail_after(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise HTTPException(408, f"the body took longer than {BODY_S:g} s") from None
    return b"".join(parts)
