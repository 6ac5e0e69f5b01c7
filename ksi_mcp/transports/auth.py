"""The operator's token: where it is kept, and who a request comes from."""

from __future__ import annotations

import hmac
import json
import logging
import os
import secrets
import stat
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

from ksi_mcp.config import Home
from ksi_mcp.errors import Invalid
from ksi_mcp.permissions import OPERATOR, Actor

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN_BYTES = 32
SHORTEST = 20
"""Characters; a shorter token was not made here and can be guessed."""

_PRIVATE = 0o600


def read_or_make_token(home: Home) -> str:
    """The token in the data folder. Made at first use; a file that others can read is made private again.

    Raises:
        Invalid: the file cannot be read or made, or holds something too short to be a secret.
    """
    try:
        return _read(home.token)
    except FileNotFoundError:
        pass
    except OSError as failure:
        raise _unusable(failure) from None
    try:
        _make(home.token)
        return _read(home.token)  # of two processes that make one at once, both use the first's
    except OSError as failure:
        raise _unusable(failure) from None


def _read(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, encoding="utf-8", errors="replace") as file:
        if stat.S_IMODE(os.fstat(fd).st_mode) & ~_PRIVATE:
            logger.warning("the token file could be read by others; its mode is 0600 now. Delete it to get a new token")
            os.fchmod(fd, _PRIVATE)
        token = file.read(1000).strip()
    if len(token) < SHORTEST or not token.isascii() or any(map(str.isspace, token)):
        raise Invalid("the token file does not hold a token", hint="delete `token` in the data folder to get a new one")
    return token


def _make(path: Path) -> None:
    """Write a new token so that nobody can see it half-written or replace an older one."""
    draft = path.with_name(f".token-{secrets.token_hex(8)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE)
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
            file.flush()
            os.fsync(fd)
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink(missing_ok=True)


def _unusable(failure: OSError) -> Invalid:
    return Invalid(
        f"the token file cannot be used: {failure.strerror}", hint="see to `token` in the data folder, or delete it"
    )


def bearer_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The token that a request carries; None: none, or more than one."""
    given = [value for name, value in headers if name == b"authorization"]
    if len(given) != 1:
        return None
    scheme, _, credentials = given[0].partition(b" ")
    return credentials.strip() if scheme.lower() == b"bearer" else None


async def caller_of(
    headers: Iterable[tuple[bytes, bytes]], token: str, others: Callable[[str], Awaitable[Actor | None]]
) -> Actor | None:
    """Who sends a request with these headers: the operator with `token`, or whom `others` know by theirs."""
    given = bearer_of(headers)
    if not given:
        return None
    if hmac.compare_digest(given, token.encode()):
        return OPERATOR
    return await others(given.decode("ascii", "replace"))


async def refuse(send: Send) -> None:
    """Answer 401: the token is missing or wrong; which of them is nobody's business."""
    await answer(
        send,
        401,
        {"error": "unauthorized", "message": "send the header Authorization: Bearer TOKEN (the file `token`)"},
        (b"www-authenticate", b'Bearer realm="ksi"'),
    )


async def answer(send: Send, status: int, body: dict[str, Any], *headers: tuple[bytes, bytes]) -> None:
    """Send a small JSON answer."""
    content = json.dumps(body).encode()
    length = (b"content-length", str(len(content)).encode())
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"application/json"), length, *headers],
        }
    )
    await send({"type": "http.response.body", "body": content})
