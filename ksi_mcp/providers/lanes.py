"""Many connections to one host, in several small pools behind one client.

One large pool looks at every connection it has, and asks the socket of each idle one, whenever a call begins or ends:
512 calls at once cost 1.7 s of CPU in it, the same calls in pools of sixteen 0.5 s. The first pools are filled first,
so that few calls use few connections.

To this machine, where connecting is all work and no waiting, a crowd is let out a few at a time: the first calls are
under way while the last still connect, instead of all of them going through each step together.

Importing this module imports `httpx2`: import it where a client is built.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

if TYPE_CHECKING:
    import ssl

_CONNECTIONS: Final = 16
"""In one pool."""
_STARTING: Final = 8
"""Calls that connect or send at once, to this machine."""
_SENT: Final = "http11.send_request_body.complete"


class Lanes(httpx2.AsyncBaseTransport):
    """A transport for `httpx2.AsyncClient` with at most so many connections; who comes then waits for one.

    A connection that is not used is kept for `keep_s`. `proxy` is the URL of one, if calls go through it. `local` says
    that the host is this machine.
    """

    def __init__(
        self, connections: int, *, keep_s: float, tls: ssl.SSLContext, proxy: str | None = None, local: bool = False
    ) -> None:
        self._keep_s = keep_s
        self._tls = tls
        self._proxy = proxy
        self._room = asyncio.Semaphore(connections)
        self._starting = asyncio.Semaphore(_STARTING) if local else None
        self._free = list(range(connections))
        self._lanes: dict[int, httpx2.AsyncHTTPTransport] = {}
        self._busy: dict[int, int] = {}
        self._used_s: dict[int, float] = {}
        self._swept_s = 0.0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; its place is free again once the response is closed."""
        await self._room.acquire()
        place = heapq.heappop(self._free)
        lane = place // _CONNECTIONS
        self._busy[lane] = self._busy.get(lane, 0) + 1
        try:
            await self._sweep()
            response = await self._send(self._lane(lane), request)
        except BaseException:
            self._leave(place)
            raise
        stream = response.stream
        assert isinstance(stream, httpx2.AsyncByteStream)  # noqa: S101 - the transport's own type says too little
        response.stream = _Held(stream, lambda: self._leave(place))
        return response

    async def aclose(self) -> None:
        """Close all connections."""
        lanes, self._lanes = self._lanes, {}
        for lane in lanes.values():
            await lane.aclose()

    async def _send(self, lane: httpx2.AsyncHTTPTransport, request: httpx2.Request) -> httpx2.Response:
        if self._starting is None:
            return await lane.handle_async_request(request)
        await self._starting.acquire()
        start = _Start(self._starting)
        request.extensions["trace"] = start.trace
        try:
            return await lane.handle_async_request(request)
        finally:
            start.over()

    def _lane(self, number: int) -> httpx2.AsyncHTTPTransport:
        lane = self._lanes.get(number)
        if lane is None:
            limits = httpx2.Limits(
                max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=self._keep_s
            )
            lane = self._lanes[number] = httpx2.AsyncHTTPTransport(verify=self._tls, limits=limits, proxy=self._proxy)
        return lane

    def _leave(self, place: int) -> None:
        lane = place // _CONNECTIONS
        self._busy[lane] -= 1
        self._used_s[lane] = time.monotonic()
        heapq.heappush(self._free, place)
        self._room.release()

    async def _sweep(self) -> None:
        """Close pools that nobody has used for a while: by themselves they only look when they are used."""
        now_s = time.monotonic()
        if now_s - self._swept_s < self._keep_s:
            return
        self._swept_s = now_s
        for lane in [n for n in self._lanes if not self._busy[n] and now_s - self._used_s[n] > self._keep_s]:
            await self._lanes.pop(lane).aclose()


class _Start:
    """The start of a call, which is over once the request is sent, or the call has failed."""

    def __init__(self, starting: asyncio.Semaphore) -> None:
        self._starting: asyncio.Semaphore | None = starting

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:  # noqa: ARG002 - what the transport tells
        """Hear of a step of the call."""
        if event == _SENT:
            self.over()

    def over(self) -> None:
        """Let the next one start."""
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.release()


class _Held(httpx2.AsyncByteStream):
    """The stream of a response, which gives its place back when it is closed."""

    def __init__(self, inner: httpx2.AsyncByteStream, leave: Callable[[], None]) -> None:
        self._inner = inner
        self._leave: Callable[[], None] | None = leave

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._inner.__aiter__()

    async def aclose(self) -> None:
        leave, self._leave = self._leave, None
        try:
            await self._inner.aclose()
        finally:
            if leave is not None:
                leave()


def open_client(
    headers: dict[str, str], *, base_url: str, connections: int, keep_s: float, connect_s: float, local: bool
) -> httpx2.AsyncClient:
    """A client for one host, which follows no redirect.

    Unless it is this machine (`local`), the environment may name a proxy and certificates. There is no time limit but
    the one for connecting: whoever asks sets the deadline of the whole call.
    """
    return httpx2.AsyncClient(
        headers=headers,
        timeout=httpx2.Timeout(None, connect=connect_s),
        follow_redirects=False,
        trust_env=False,
        transport=Lanes(
            connections,
            keep_s=keep_s,
            tls=httpx2.create_ssl_context(trust_env=not local),
            proxy=None if local else environment_proxy(base_url),
            local=local,
        ),
    )


def environment_proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL, if it does."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or not parts.hostname or proxy_bypass(parts.hostname):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
