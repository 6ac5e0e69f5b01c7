"""How another MCP server is reached: what the configuration says of it, checked, filled in, and bounded."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

from ksi_mcp.errors import Invalid
from ksi_mcp.provider_config import McpServerConfig
from ksi_mcp.providers.processes import MAX_LINE_BYTES
from ksi_mcp.providers.urls import check_url

Lookup = Callable[[str], str | None]
"""The value behind a name: from the environment, or wherever the operator keeps it."""

_CONNECT_S: Final = 30.0
_READ_S: Final = 300.0
_SECRET_CHARS: Final = 6
_NAMED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def filled(values: Mapping[str, str], lookup: Lookup, *, server: str, secrets: set[str]) -> dict[str, str]:
    """Values with each `${NAME}` replaced; what was put in is added to `secrets`.

    Raises:
        Invalid: there is nothing of that name.
    """

    def find(match: re.Match[str]) -> str:
        found = lookup(match.group(1))
        if found is None:
            raise Invalid(
                f"MCP server {server!r} wants ${{{match.group(1)}}}, which is not set",
                hint="set it where the worker runs, or change mcp_servers in config.yaml",
            )
        if len(found) >= _SECRET_CHARS:
            secrets.add(found)
        return found

    return {name: _NAMED.sub(find, value) for name, value in values.items()}


def check_server(name: str, config: McpServerConfig) -> None:
    """Whether a server of the configuration can be reached at all.

    Raises:
        Invalid: it has neither command nor URL, or both; or its URL is plain HTTP to another machine.
    """
    if (config.command is None) == (config.url is None):
        raise Invalid(f"config.yaml: mcp_servers.{name} must have either command or url")
    if config.url is not None:
        check_url(config.url, f"MCP server {name!r}")


def http_client(name: str, config: McpServerConfig, lookup: Lookup, secrets: set[str]) -> Any:
    """A client for the server's URL alone, with its headers; what it takes in one answer is bounded.

    Raises:
        Invalid: a name that a header holds is not set.
    """
    import httpx2  # noqa: PLC0415  the SDK's own, and loaded with it

    _, loopback = check_url(config.url or "", f"MCP server {name!r}")
    headers = filled(config.headers, lookup, server=name, secrets=secrets)

    async def bound(response: Any) -> None:
        if response.headers.get("content-encoding", "identity") != "identity":  # a few bytes may become any number
            raise httpx2.DecodingError("it compressed its answer, unasked", request=response.request)
        if response.request.method == "POST":  # the events that a GET waits for are bounded one by one
            response.stream = _bounded(response.stream, httpx2)

    return httpx2.AsyncClient(
        headers={**headers, "accept-encoding": "identity"},
        timeout=httpx2.Timeout(_CONNECT_S, read=max(_READ_S, config.timeout_s)),
        event_hooks={"response": [bound]},
        trust_env=not loopback,  # no proxy comes between us and this machine
    )


def _bounded(stream: Any, httpx2: Any) -> Any:
    class Bounded(httpx2.AsyncByteStream):  # type: ignore[misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            seen = 0
            async for piece in stream:
                seen += len(piece)
                if seen > MAX_LINE_BYTES:
                    raise httpx2.ReadError(f"its answer is longer than {MAX_LINE_BYTES:,} bytes")
                yield piece

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()
