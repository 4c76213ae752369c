"""Runs an application on a port until Ctrl-C or SIGTERM."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

from nispa.errors import ConfigError, OutputError, needs
from nispa.files import reason
from nispa.serve.gate import Door

with needs("serve", "serving"):
    import uvicorn

LOCAL = frozenset(("127.0.0.1", "localhost", "[::1]"))
LEAST_TOKEN = 16
GRACE_S = 5
MOST_AT_A_TIME = 512


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def door_for(host: str, token: str | None) -> Door:
    """Who may ask a server at ``host``.

    Raises:
        ConfigError: Other machines could ask, and no token is set, or one that can be guessed.
    """
    local = is_loopback(host)
    if token is None and not local:
        raise ConfigError(
            f"--host {host} lets other machines ask, so a token is needed; put one of at least "
            f"{LEAST_TOKEN} characters into a file and pass --token-file FILE, or into the "
            "variable NISPA_TOKEN"
        )
    if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or " " in token):
        raise ConfigError(
            f"the token must have at least {LEAST_TOKEN} ASCII characters and no blanks; make one "
            'with: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return Door(LOCAL | {host} if local else None, token)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OutputError: The port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise OutputError(f"cannot listen on {host}:{port}: {why}; choose another --port") from None


def address(listening: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run(
    app: Any,
    listening: socket.socket,
    ready: Callable[[], None] | None = None,
    stopping: Callable[[], None] | None = None,
) -> None:
    """Serves until Ctrl-C or SIGTERM, which raise KeyboardInterrupt after everything is closed.

    Args:
        app: The application.
        listening: The socket; it is closed.
        ready: Called when requests are answered.
        stopping: Called when a signal came, before replies under way are waited for.
    """

    class Announcing(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if stopping is not None:
                stopping()
            super().handle_exit(sig, frame)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if ready is not None:
                ready()

    config = uvicorn.Config(
        app,
        lifespan="on",
        http="h11",
        ws="none",
        loop="asyncio",
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        limit_concurrency=MOST_AT_A_TIME,
        timeout_graceful_shutdown=GRACE_S,
        h11_max_incomplete_event_size=65_536,
    )
    try:
        Announcing(config).run(sockets=[listening])
    finally:
        listening.close()
