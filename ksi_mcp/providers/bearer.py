"""An HTTP client that carries one token to one address.

The token is never sent over plain HTTP to another machine, never through a proxy to this one, and goes to no other
origin by a redirect. Importing this module imports `httpx2`.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

import httpx2

from ksi_mcp.errors import Invalid
from ksi_mcp.providers.urls import is_loopback

_CONNECT_S: Final = 10.0
_READ_S: Final = 120.0
"""The longest wait of a tool is under a minute, and it tells its progress meanwhile."""
_UNAUTHORIZED: Final = 401


class Bearer:
    """The client, and whether its token was refused: the protocol above it does not say.

    Raises:
        Invalid: the address or the token is none, or the token would be shown on the way.
    """

    def __init__(self, url: str, token: str) -> None:
        loopback = _check(url, token)
        self.refused = False
        self.http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx2.Timeout(_CONNECT_S, read=_READ_S),
            follow_redirects=False,
            trust_env=not loopback,
            event_hooks={"response": [self._hear]},
        )

    async def _hear(self, response: httpx2.Response) -> None:
        self.refused = self.refused or response.status_code == _UNAUTHORIZED


def is_transport(failure: BaseException) -> bool:
    """Whether a failure is one of the connection."""
    return isinstance(failure, httpx2.HTTPError | OSError)


def is_timeout(failure: BaseException) -> bool:
    """Whether nobody answered in time."""
    return isinstance(failure, httpx2.TimeoutException)


def _check(url: str, token: str) -> bool:
    """Whether the address is on this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
        raise Invalid("the address of the tools is malformed", hint="write http://127.0.0.1:PORT/mcp")
    if parts.scheme == "http" and not is_loopback(host):
        raise Invalid("plain HTTP would show the token to everybody on the way", hint="use https, or this machine")
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise Invalid("that is no token", hint="it is one word of ASCII")
    return is_loopback(host)
