"""What the simulator says of one call, in the words of the API that was called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from ksi_mcp.providers.base import Request
from ksi_mcp.providers.script import Planned
from ksi_mcp.web import sim_wire as wire


class Dialect(Protocol):
    """The words of one API for one call. Whatever an answer or a failure is, it is planned elsewhere."""

    def parse(self, raw: bytes, headers: Mapping[str, str]) -> tuple[Request, bool]:
        """Check a request; return it and whether it wants a stream. Raises `WireError`."""
        ...

    def headers(self, plain: Mapping[str, str]) -> dict[str, str]:
        """Name the headers of an answer as this API does; given are those of the Messages API."""
        ...

    def whole(self, planned: Planned, message_id: str) -> dict[str, Any]:
        """The answer as one object."""
        ...

    def begin(self, planned: Planned, message_id: str) -> Iterable[bytes]:
        """What a stream begins with, before any text."""
        ...

    def partial(self, text: str) -> Iterable[bytes]:
        """Text after which nothing more comes."""
        ...

    def rest(self, planned: Planned) -> Iterable[bytes]:
        """The whole content of a stream, and its end."""
        ...

    def error(self, status: int, message: str, request_id: str) -> dict[str, Any]:
        """The body of a refusal."""
        ...

    def broken(self, status: int, message: str, request_id: str) -> bytes:
        """An error inside a stream."""
        ...


class MessagesDialect:
    """The Messages API."""

    def parse(self, raw: bytes, headers: Mapping[str, str]) -> tuple[Request, bool]:
        """Check a request, its key included, whatever it is."""
        if "authorization" not in headers and "x-api-key" not in headers:
            raise wire.WireError("x-api-key header is required", status=401)
        return wire.parse_request(raw)

    def headers(self, plain: Mapping[str, str]) -> dict[str, str]:
        """They are this API's own."""
        return dict(plain)

    def whole(self, planned: Planned, message_id: str) -> dict[str, Any]:
        """A message."""
        return wire.message_body(planned, message_id)

    def begin(self, planned: Planned, message_id: str) -> Iterable[bytes]:
        """`message_start` and a ping."""
        return wire.stream_start(planned, message_id)

    def partial(self, text: str) -> Iterable[bytes]:
        """A text block that stays open."""
        return wire.stream_text(text, stop=False)

    def rest(self, planned: Planned) -> Iterable[bytes]:
        """The blocks, `message_delta` and `message_stop`."""
        return wire.stream_content(planned)

    def error(self, status: int, message: str, request_id: str) -> dict[str, Any]:
        """An error object."""
        return wire.error_body(status, message, request_id)

    def broken(self, status: int, message: str, request_id: str) -> bytes:
        """An error event."""
        return wire.event("error", wire.error_body(status, message, request_id))
