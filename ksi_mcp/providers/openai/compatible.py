"""Any server that speaks OpenAI's chat completions: Ollama, LM Studio, vLLM, llama.cpp, OpenRouter, Gemini, OpenAI.

It is spoken over `httpx2` itself: no SDK. One client serves all calls. Nothing is tried twice here (the worker does,
and books each attempt), and no redirect is followed, which would take a prompt to another host.

A server that counts no tokens is not believed to be free: the usage is an upper bound then, and says so.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from ksi_mcp.errors import ProviderError, ProviderErrorKind
from ksi_mcp.providers.base import Answer, OnText, Request
from ksi_mcp.providers.failures import retry_after_s, safe_text
from ksi_mcp.providers.openai.events import BrokenOff, Unreadable
from ksi_mcp.providers.openai.reading import Reading
from ksi_mcp.providers.openai.wire import (
    Said,
    dialect_of,
    endpoint,
    input_bound,
    model_names,
    read_error,
    request_body,
)
from ksi_mcp.providers.urls import check_url

if TYPE_CHECKING:
    from types import ModuleType

    from httpx2 import AsyncClient, Response

_CONNECT_TIMEOUT_S: Final = 10.0
_MODELS_TIMEOUT_S: Final = 3.0
# Longer than an agent's tools usually take where a new connection costs a handshake; shorter than the five seconds
# after which many local servers hang up, since a request that crosses that is one of unknown cost.
_KEPT_S: Final = 30.0
_KEPT_LOCALLY_S: Final = 4.0
# The answer is there: how long to wait for its usage, and for the end that lets the connection be used again.
_USAGE_WITHIN_S: Final = 5.0
_END_WITHIN_S: Final = 0.5
_ERROR_WITHIN_S: Final = 5.0
_ERROR_BYTES: Final = 65_536
_LIST_BYTES: Final = 4_000_000
_OK: Final = range(200, 300)
_REDIRECTS: Final = range(300, 400)
_NOT_FOUND: Final = 404
_HINTS: Final[dict[str, str]] = {
    "auth": "check the API key and what it may use",
    "budget": "raise the spend limit or the credit of the account, or use another model",
}


class OpenAICompatibleProvider:
    """Chat completions at `base_url`, such as http://localhost:11434/v1.

    `max_connections` bounds the calls under way at once. Without `api_key` none is sent. Raises `Invalid` for a URL
    that is malformed or would show the key to others.
    """

    def __init__(
        self,
        api_key: str | None,
        base_url: str,
        max_connections: int = 64,
        *,
        name: str = "openai_compatible",
    ) -> None:
        self.name = name
        self._api_key = (api_key or "").strip()
        self._base_url = base_url
        self._host, self.loopback = check_url(base_url, name)
        self._url = endpoint(base_url, "/chat/completions")
        self._says_cost = dialect_of(base_url).says_cost
        self._max_connections = max_connections
        self._client: AsyncClient | None = None
        self._opening = asyncio.Lock()

    async def complete(self, request: Request, *, deadline_s: float, on_text: OnText | None = None) -> Answer:
        """Ask the model once, streaming. `deadline_s` bounds everything, the wait for a connection included."""
        body = self._body(request)
        reading = Reading(request.model, on_text, secret=self._api_key)
        try:
            async with asyncio.timeout(deadline_s) as limit:
                await self._ask(body, reading, limit)
            reading.end()
        except ProviderError:
            raise
        except Exception as error:  # noqa: BLE001 - the contract: nothing but ProviderError escapes
            failure = self._failure(error, reading, deadline_s)
            if not reading.finished or isinstance(error, BrokenOff):
                raise failure from None
            # All of the answer had come: only the usage or the end of the connection is missing, or wrong.
        return reading.answer(
            max_tokens=request.max_tokens,
            input_bound=input_bound(request),
            says_cost=self._says_cost,
        )

    async def models(self, *, within_s: float = _MODELS_TIMEOUT_S) -> list[str]:
        """The models that the server offers, in its order; embedding models may be among them.

        Raises:
            ProviderError: it did not say, within so many seconds.
        """
        try:
            async with asyncio.timeout(within_s):
                return await self._list()
        except ProviderError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise self._failure(error, Reading("", None), within_s) from None

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    async def _open(self) -> AsyncClient:
        if self._client is not None:
            return self._client
        if not (self._api_key.isascii() and self._api_key.isprintable()):
            raise ProviderError(
                f"the API key for {self._host} holds characters that no key has",
                kind="auth",
                billed="no",
                hint="set it again, without spaces or line breaks",
            )
        async with self._opening:
            if self._client is None:
                self._client = await asyncio.to_thread(self._build)  # imports and certificates: not on the loop
        return self._client

    def _build(self) -> AsyncClient:
        from ksi_mcp.providers.lanes import open_client  # noqa: PLC0415 - it imports httpx2

        headers = {
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",  # so that nothing small becomes something huge here
            "Content-Type": "application/json",
            "User-Agent": "ksi-mcp",
        }
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        return open_client(
            headers,
            base_url=self._base_url,
            connections=self._max_connections,
            keep_s=_KEPT_LOCALLY_S if self.loopback else _KEPT_S,
            connect_s=_CONNECT_TIMEOUT_S,
            local=self.loopback,  # a proxy has no business between two programs of one machine
        )

    def _body(self, request: Request) -> bytes:
        try:
            body = request_body(request, self._base_url)
        except (TypeError, ValueError, AttributeError, RecursionError):
            raise ProviderError("the request cannot be written as JSON", kind="request", billed="no") from None
        if not body:
            raise ProviderError("there is nothing to send: every message is empty", kind="request", billed="no")
        return body

    async def _ask(self, body: bytes, reading: Reading, limit: asyncio.Timeout) -> None:
        client = await self._open()
        async with client.stream("POST", self._url, content=body) as response:
            if response.status_code not in _OK:
                raise await self._refusal(response)
            reading.request_id = reading.short(response.headers.get("x-request-id"))
            await _read(response, reading, limit)

    async def _list(self) -> list[str]:
        client = await self._open()
        read = bytearray()
        async with client.stream("GET", endpoint(self._base_url, "/models")) as response:
            if response.status_code not in _OK:
                raise await self._refusal(response)
            _check_encoding(response)
            async with aclosing(response.aiter_raw()) as chunks:
                async for chunk in chunks:
                    read += chunk
                    if len(read) > _LIST_BYTES:
                        raise Unreadable("its list of models is too long")
        return model_names(json.loads(read))

    async def _refusal(self, response: Response) -> ProviderError:
        """The error that an answer with another status stands for, with as much of its text as comes soon."""
        read = bytearray()
        try:
            _check_encoding(response)
            async with asyncio.timeout(_ERROR_WITHIN_S), aclosing(response.aiter_raw()) as chunks:
                async for chunk in chunks:
                    read += chunk
                    if len(read) > _ERROR_BYTES:
                        break
        except (TimeoutError, Unreadable, _load().TransportError):
            pass  # the status says enough
        status = response.status_code
        said = read_error(bytes(read[:_ERROR_BYTES]))
        text = safe_text(said.message, secret=self._api_key) or "it did not say why"
        kind = said.kind(status)
        hint = _hint(kind, said)
        if hint is None and status == _NOT_FOUND:
            hint = "check the name of the model, and that the base URL ends as the server wants it, such as in /v1"
        if status in _REDIRECTS:
            hint = "give the address that it leads to as the base URL: redirects are not followed"
        return ProviderError(
            f"{self._host} answered with status {status}: {text}",
            kind=kind,
            billed="no",
            retry_after_s=retry_after_s(response.headers),
            hint=hint,
        )

    def _failure(self, error: Exception, reading: Reading, deadline_s: float) -> ProviderError:
        httpx2 = _load()
        kind: ProviderErrorKind = "bug"
        never_sent, hint = False, None
        if isinstance(error, TimeoutError):
            kind, message = "timeout", f"no complete answer from {self._host} within {deadline_s:g} s"
        elif isinstance(error, BrokenOff):
            kind = error.said.kind()
            hint = _hint(kind, error.said)
            message = f"{self._host} broke off the answer: {safe_text(error.said.message, secret=self._api_key)}"
        elif isinstance(error, Unreadable):
            message = f"the answer of {self._host} could not be read: {error}"
        elif isinstance(error, httpx2.TransportError):
            kind, message = "transport", f"the connection to {self._host} failed ({type(error).__name__})"
            never_sent = isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout))
            if never_sent and self.loopback:
                hint = "is the model server running?"
        else:
            message = f"the answer of {self._host} could not be read ({type(error).__name__})"
        return ProviderError(
            message, kind=kind, billed="no" if never_sent else "unknown", partial_text=reading.text(), hint=hint
        )


async def _read(response: Response, reading: Reading, limit: asyncio.Timeout) -> None:
    """Read a stream to its end, so that the connection can be used again, but wait no longer than it is worth."""
    _check_encoding(response)
    now_s = asyncio.get_running_loop().time
    finished = over = False
    async with aclosing(response.aiter_raw()) as chunks:
        async for chunk in chunks:
            reading.feed(chunk)
            if reading.over and not over:
                over = finished = True
                _wait(limit, now_s() + _END_WITHIN_S)
            elif reading.finished and not finished:
                finished = True
                _wait(limit, now_s() + _USAGE_WITHIN_S)


def _wait(limit: asyncio.Timeout, until_s: float) -> None:
    ends_s = limit.when()
    if not limit.expired() and (ends_s is None or until_s < ends_s):
        limit.reschedule(until_s)


def _check_encoding(response: Response) -> None:
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise Unreadable("it is compressed, which was not asked for")


def _hint(kind: ProviderErrorKind, said: Said) -> str | None:
    if kind == "request" and said.too_long:
        return "the conversation does not fit into the model: shorten it, or use one with a larger context"
    return _HINTS.get(kind)


def _load() -> ModuleType:
    import httpx2  # noqa: PLC0415 - a tenth of a second that a server which asks no model need not spend

    return httpx2
