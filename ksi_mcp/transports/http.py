"""MCP over HTTP: Streamable HTTP at /mcp and, for older clients, SSE at /sse, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import cast

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.transport_security import TransportSecuritySettings

from ksi_mcp.app import App
from ksi_mcp.errors import Invalid
from ksi_mcp.permissions import OPERATOR, Actor
from ksi_mcp.transports.access import ACTOR
from ksi_mcp.transports.auth import (
    AsgiApp,
    Message,
    Receive,
    Scope,
    Send,
    answer,
    bearer_of,
    caller_of,
    read_or_make_token,
    refuse,
)
from ksi_mcp.transports.guests import MAX_OPEN, Guest, Guests
from ksi_mcp.transports.server import KsiServer, ToolSet, build_server
from ksi_mcp.transports.signals import stopping

logger = logging.getLogger(__name__)

KINDS = frozenset({"http", "sse"})
MAX_BODY_BYTES = 4 * 1024 * 1024
"""A larger request is answered with 413, unread."""
BODY_S = 60.0
"""How long a request's body may take to arrive: one that never ends must not be held for ever."""
GRACE_S = 0.5
"""How long calls at work may go on once the server is told to stop. What they wait for goes on in any case."""

HEALTH_S = 2.0
"""A store that takes longer for one look is not well."""

_LAST_RESORT_S = 1
_BACKLOG = 128
_REFUSALS = frozenset({403, 421})
_CLOSE = (b"connection", b"close")
"""Goes with the refusal of a request that was not read to its end: what follows on the connection is not known."""
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

__all__ = ["KINDS", "is_loopback", "read_or_make_token", "serve_http"]


async def serve_http(
    app: App,
    *,
    host: str,
    port: int,
    kinds: frozenset[str] = KINDS,
    token: str | None,
    tools: ToolSet = "default",
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, or until cancelled.

    `port` 0 takes a free one; `on_ready` is called with the base URL, such as `http://127.0.0.1:8765`, once
    clients can connect. Without `token` anybody who reaches the port is the operator; that is only taken on
    loopback. The Host and Origin headers must name `host` or loopback, except where `host` means all
    interfaces: their names are unknown, and a web page that finds its way there has no token.

    Raises:
        Invalid: no token on another host than loopback, an unknown kind, or an address that cannot be used.
    """
    import uvicorn

    from ksi_mcp.transports.connections import Connection  # noqa: PLC0415  it imports uvicorn

    if not kinds or not kinds <= KINDS:
        raise Invalid(f"unknown kinds of transport: {', '.join(sorted(kinds - KINDS)) or 'none'}", hint="http, sse")
    if not token and not is_loopback(host):
        raise Invalid(f"serving on {host[:80]!r} needs a token", hint="only loopback may go without")
    listener = await listen(host, port)
    try:
        server = build_server(app, tools=tools)
        door = _Door(
            server, app.services.access.who, _health_of(app), kinds=kinds, token=token, security=_security(host)
        )
        config = uvicorn.Config(
            door,
            http=Connection,
            lifespan="off",
            log_config=None,
            access_log=False,
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_LAST_RESORT_S,
        )
        web = uvicorn.Server(config)

        stopped = asyncio.Event()
        # Installed before uvicorn's: it puts its own above them and, once it has shut down, sends itself the
        # signal again. That must find these, or the process would die before the App is closed.
        with stopping(stopped.set):
            work = asyncio.create_task(web.serve(sockets=[listener]))
            try:
                async with contextlib.AsyncExitStack() as sessions:
                    if "http" in kinds:
                        await sessions.enter_async_context(server.session_manager.run())
                    try:
                        if on_ready is not None:
                            on_ready(_url(host, listener))
                        await _first(work, stopped)
                    finally:
                        await door.close()
            finally:
                # The sessions have ended, and told their clients so. What is still open belongs to none.
                door.cut()
                web.should_exit = True
                await work
    finally:
        listener.close()


class _Door:
    """Every request: to its transport if it carries the token. Knows the open ones, to end them at shutdown."""

    def __init__(
        self,
        server: KsiServer,
        others: Callable[[str], Awaitable[Actor | None]],
        health: Callable[[], Awaitable[bool]],
        *,
        kinds: frozenset[str],
        token: str | None,
        security: TransportSecuritySettings,
    ) -> None:
        self._token = token
        self._others = others
        self._guests = Guests(others)
        self._health = health
        self._apps: dict[str, AsgiApp] = {}
        self._streams: set[asyncio.Task[object]] = set()
        self._calls: set[asyncio.Task[object]] = set()
        self._closed = False
        if "http" in kinds:
            self._apps["/mcp"] = cast(
                "AsgiApp",
                server.streamable_http_app(max_request_body_size=MAX_BODY_BYTES, transport_security=security),
            )
        if "sse" in kinds:
            sse = cast("AsgiApp", server.sse_app(max_request_body_size=MAX_BODY_BYTES, transport_security=security))
            self._apps |= {"/sse": sse, "/messages": sse}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path == "/health":
            healthy = not self._closed and await self._health()
            await answer(send, 200 if healthy else 503, {"status": "ok" if healthy else "unavailable"})
            return
        app = self._apps.get("/messages" if path.startswith("/messages/") else path)
        if app is None:
            await answer(send, 404, {"error": "not found", "message": f"here are {', '.join(self._apps)} and /health"})
        elif self._closed:
            await answer(send, 503, {"error": "shutting down"})
        elif {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            # Two lengths: whoever stands before this server may have read another request than it did.
            await answer(
                send, 400, {"error": "bad request", "message": "Content-Length or Transfer-Encoding, not both"}, _CLOSE
            )
        elif (caller := await self._caller(scope)) is None:
            await refuse(send)
        else:
            token = None if caller == OPERATOR else (bearer_of(scope["headers"]) or b"").decode("ascii", "replace")
            if self._guests.is_full(token):
                said = f"{MAX_OPEN} requests with this token are open, the most there can be; let one of them end"
                await answer(send, 429, {"error": "too many requests", "message": said})
                return
            _admit(scope, caller, token)
            with self._guests.inside(token) as guest:
                await self._pass(app, scope, receive, send, guest)

    async def _caller(self, scope: Scope) -> Actor | None:
        if self._token is None:
            return OPERATOR
        return await caller_of(scope["headers"], self._token, self._others)

    async def _pass(self, app: AsgiApp, scope: Scope, receive: Receive, send: Send, guest: Guest) -> None:
        status, complete = 0, False
        body = _Body(receive, guest)

        async def noting(message: Message) -> None:
            nonlocal status, complete
            if guest.gone or (body.failed and not status):
                return  # what the SDK makes of a request that never came whole
            status = status or message["status"]
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        task = asyncio.current_task()
        at_work = self._streams if scope["method"] == "GET" else self._calls
        if task is not None:
            at_work.add(task)
        try:
            await app(scope, body.receive, noting)
        except asyncio.CancelledError:
            if not self._closed:
                raise
        except ValueError:
            if status not in _REFUSALS:  # the SDK's SSE endpoint raises after it has refused a Host or Origin
                raise
        except Exception:
            if not body.failed:
                raise
        finally:
            if task is not None:
                at_work.discard(task)
        if body.late and not status:
            await answer(
                send, 408, {"error": "timeout", "message": f"a request comes whole within {BODY_S:g} s"}, _CLOSE
            )
        elif (self._closed or guest.gone) and not complete:
            with contextlib.suppress(Exception):  # the client may be gone
                if status:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                elif guest.gone:
                    await refuse(send)
                else:
                    await answer(send, 503, {"error": "shutting down"})

    async def close(self) -> None:
        """Take no more requests, end the streams, which would stay open for ever, and let calls finish for a moment."""
        self._closed = True
        self._guests.close()
        _cancel(self._streams)
        if self._calls:
            await asyncio.wait(self._calls, timeout=GRACE_S)

    def cut(self) -> None:
        """End what is still open."""
        _cancel(self._streams | self._calls)


class _Body:
    """What is received of a request: its body has to come whole, and in time."""

    def __init__(self, receive: Receive, guest: Guest) -> None:
        self._receive = receive
        self._guest = guest
        self._until = asyncio.get_running_loop().time() + BODY_S
        self._whole = False
        self.late = False
        self.failed = False
        """It came too late, or its client left in the middle of it."""

    async def receive(self) -> Message:
        if self._whole:  # what comes now is that the client hangs up, whenever that is
            return await self._guest.hear(self._receive)
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            self.late = True
            message = {"type": "http.disconnect"}
        self._whole = not message.get("more_body", False)
        self.failed = message["type"] == "http.disconnect"
        return message


def _health_of(app: App) -> Callable[[], Awaitable[bool]]:
    """Whether the store answers. Anybody may ask, so it says no more than that."""

    async def healthy() -> bool:
        try:
            await asyncio.wait_for(app.services.journal.read(lambda tx: tx.one("events.last_id")), HEALTH_S)
        except Exception:  # whatever it is
            logger.exception("the store does not answer")
            return False
        return True

    return healthy


def _admit(scope: Scope, caller: Actor, token: str | None) -> None:
    """Leave in the request who sends it. The SDK lets no other token use a session that one has begun."""
    scope[ACTOR] = caller
    mark = "" if token is None else hashlib.sha256(token.encode()).hexdigest()
    scope["user"] = AuthenticatedUser(AccessToken(token="", client_id=f"{caller} {mark}", scopes=[]))


async def _first(work: asyncio.Task[None], stopped: asyncio.Event) -> None:
    """Return when the one has ended or the other is set."""
    waiting = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


def _cancel(tasks: set[asyncio.Task[object]]) -> None:
    for task in list(tasks):
        task.cancel()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        Invalid: the address is unknown or in use.
    """
    try:
        # With the protocol named, asyncio switches Nagle's delay off for the connections.
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
        family, kind, proto, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, OverflowError, UnicodeError) as failure:
        reason = getattr(failure, "strerror", None) or "not an address"
        raise Invalid(
            f"cannot listen on {host[:80]!r}, port {port}: {reason}", hint="choose another --host or --port"
        ) from None
    listener.setblocking(False)
    return listener


def _security(host: str) -> TransportSecuritySettings:
    if _is_wildcard(host):
        return TransportSecuritySettings(enable_dns_rebinding_protection=False)
    names = [*_LOOPBACK] if is_loopback(host) else []
    own = _bracketed(host)
    if own not in names:
        names.append(own)
    hosts = [form for name in names for form in (name, f"{name}:*")]
    return TransportSecuritySettings(
        allowed_hosts=hosts,
        allowed_origins=[f"{scheme}://{form}" for scheme in ("http", "https") for form in hosts],
    )


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _url(host: str, listener: socket.socket) -> str:
    name = "127.0.0.1" if _is_wildcard(host) else _bracketed(host)
    return f"http://{name}:{listener.getsockname()[1]}"
