"""Whether a base URL may be used, before anything is sent there."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

from ksi_mcp.errors import Invalid
from ksi_mcp.providers.failures import safe_text


def check_url(url: str, what: str) -> tuple[str, bool]:
    """Return the host to name in messages, and whether it is this machine. The URL itself may hold a secret.

    `what` says whose URL it is, such as `Anthropic`.

    Raises:
        Invalid: it is malformed, holds a user or password, or is plain HTTP to another machine.
    """
    try:
        parts: SplitResult = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise _malformed(what) from None
    if parts.scheme not in ("http", "https") or not host:
        raise _malformed(what)
    if "@" in parts.netloc:
        raise Invalid(f"the base URL for {what} holds a user or password", hint="leave it out; give the key by itself")
    loopback = is_loopback(host)
    if parts.scheme == "http" and not loopback:
        raise Invalid(
            f"plain HTTP would show the API key to everybody on the way to {safe_text(host)}", hint="use https"
        )
    return safe_text(host if port is None else f"{host}:{port}"), loopback


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_loopback_url(url: str | None) -> bool:
    """Whether a URL leads to this machine; whether it may be used is for `check_url` to say."""
    try:
        return url is not None and is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def _malformed(what: str) -> Invalid:
    return Invalid(f"the base URL for {what} is malformed", hint="write https://host[:port][/path]")
