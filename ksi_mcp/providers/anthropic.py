"""Claude through the `anthropic` SDK, which is loaded at the first call: it costs a second and 70 MB.

The SDK is used for its transport and its types only. It never retries here (the worker does, and books each attempt),
it gets its key and host explicitly, since it would otherwise look for them in the environment and in profile files, and
it follows no redirect, which would take a prompt to another host.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, get_args
from urllib.parse import SplitResult, urlsplit

from ksi_mcp.errors import Invalid, ProviderError, ProviderErrorKind
from ksi_mcp.providers.base import Answer, Block, Message, OnText, Request, StopReason, ToolUse, Usage
from ksi_mcp.providers.failures import OVERLOADED, PAYMENT_REQUIRED, kind_of_error, retry_after_s, safe_text

if TYPE_CHECKING:
    from types import ModuleType

    from anthropic import AsyncAnthropic

DEFAULT_BASE_URL: Final = "https://api.anthropic.com"
_CONNECT_TIMEOUT_S: Final = 10.0
_USER_ID_CHARS: Final = 256
_STREAM_BEGAN: Final = 200
# An error that comes inside a stream has status 200; its type says what it would have been.
_STATUS_OF_TYPE: Final = {
    "overloaded_error": OVERLOADED,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "api_error": 500,
    "billing_error": PAYMENT_REQUIRED,
    "authentication_error": 401,
    "permission_error": 403,
}
_STOP_REASONS: Final[dict[str, StopReason]] = {
    "model_context_window_exceeded": "context_exceeded",
    **{reason: reason for reason in get_args(StopReason)},
}
_HINTS: Final[dict[str, str]] = {
    "auth": "check the API key and what it may use",
    "budget": "raise the spend limit or the credit of the account, or use another model",
}


class AnthropicProvider:
    """The Messages API, or anything that speaks it at `base_url` (a gateway, Ollama, the simulator).

    `max_connections` bounds the calls under way at once. `prompt_caching` marks each request for the API's automatic
    cache, whose writes cost more than plain input. A loopback host needs no key.
    """

    name = "anthropic"

    def __init__(
        self,
        api_key: str | None,
        base_url: str | None = None,
        max_connections: int = 64,
        *,
        prompt_caching: bool = False,
    ) -> None:
        self._api_key = (api_key or "").strip()
        self._base_url = base_url or DEFAULT_BASE_URL
        self._host, self.loopback = _check_url(self._base_url)
        self._max_connections = max_connections
        self._prompt_caching = prompt_caching
        self._client: AsyncAnthropic | None = None
        self._opening = asyncio.Lock()

    async def complete(self, request: Request, *, deadline_s: float, on_text: OnText | None = None) -> Answer:
        """Ask the model once, streaming. `deadline_s` bounds everything, the wait for a connection included."""
        body = self._body(request)
        reading = _Reading(request.model, on_text)
        try:
            async with asyncio.timeout(deadline_s):
                client = await self._open()
                await reading.run(client, body, self._headers())
            return reading.answer()
        except ProviderError:
            raise
        except TimeoutError:
            raise ProviderError(
                f"no complete answer from {self._host} within {deadline_s:g} s",
                kind="timeout",
                billed="unknown",
                partial_text=reading.text(),
            ) from None
        except Exception as error:  # noqa: BLE001 - the contract: nothing but ProviderError escapes
            raise self._failure(error, reading) from None

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    async def _open(self) -> AsyncAnthropic:
        if self._client is not None:
            return self._client
        if not self._api_key and not self.loopback:
            raise ProviderError(
                "there is no API key for Anthropic",
                kind="auth",
                billed="no",
                hint="set ANTHROPIC_API_KEY where the server starts, or use the provider 'scripted'",
            )
        async with self._opening:
            if self._client is None:
                try:
                    await asyncio.to_thread(_load)  # a second of imports: not on the loop
                except ImportError:
                    raise ProviderError(
                        "the package 'anthropic' is not installed",
                        kind="request",
                        billed="no",
                        hint="run: pip install 'anthropic>=2.11,<3'",
                    ) from None
                self._client = self._build()
        return self._client

    def _build(self) -> AsyncAnthropic:
        anthropic, httpx2 = _load()
        limits = httpx2.Limits(max_connections=self._max_connections, max_keepalive_connections=self._max_connections)
        # No time limit of its own but for connecting: the deadline of the call is the limit.
        timeout = httpx2.Timeout(None, connect=_CONNECT_TIMEOUT_S)
        if self.loopback:  # a proxy from the environment has no business between two programs of one machine
            http = httpx2.AsyncClient(limits=limits, timeout=timeout, follow_redirects=False, trust_env=False)
        else:
            http = anthropic.DefaultAsyncHttpxClient(limits=limits, timeout=timeout, follow_redirects=False)
        client: AsyncAnthropic = anthropic.AsyncAnthropic(
            api_key=self._api_key or "none", base_url=self._base_url, max_retries=0, timeout=timeout, http_client=http
        )
        return client

    def _headers(self) -> dict[str, Any]:
        # ANTHROPIC_CUSTOM_HEADERS would win over the key given to the client; what a request brings wins over both.
        anthropic, _ = _load()
        return {"Authorization": f"Bearer {self._api_key or 'none'}", "X-Api-Key": anthropic.Omit()}

    def _body(self, request: Request) -> dict[str, Any]:
        messages = api_messages(request.messages)
        if not messages:
            raise ProviderError("there is nothing to send: every message is empty", kind="request", billed="no")
        body: dict[str, Any] = {"model": request.model, "max_tokens": request.max_tokens, "messages": messages}
        if request.system.strip():
            body["system"] = request.system
        if request.tools:
            body["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": tool.input_schema}
                for tool in request.tools
            ]
        if request.effort is not None:
            body["output_config"] = {"effort": request.effort}
        if request.agent:
            body["metadata"] = {"user_id": request.agent[:_USER_ID_CHARS]}
        if self._prompt_caching:
            body["cache_control"] = {"type": "ephemeral"}
        return body

    def _failure(self, error: Exception, reading: _Reading) -> ProviderError:
        anthropic, _ = _load()
        kind = classify(error)
        billed: Literal["no", "unknown"] = "unknown"
        wait: float | None = None
        if isinstance(error, anthropic.APIStatusError):
            said = safe_text(_text(error.api_message) or error.message, secret=self._api_key)
            if error.status_code == _STREAM_BEGAN:
                message = f"{self._host} broke off the answer: {said}"
            else:
                message = f"{self._host} answered with status {error.status_code}: {said}"
                billed = "no"
                wait = retry_after_s(error.response.headers)
        elif kind in ("transport", "timeout"):
            cause = _cause(error)
            if _never_sent(cause):
                billed = "no"
            message = f"the connection to {self._host} failed ({type(cause).__name__})"
        else:
            message = f"the answer of {self._host} could not be read ({type(error).__name__})"
        return ProviderError(
            message,
            kind=kind,
            billed=billed,
            retry_after_s=wait,
            partial_text=reading.text(),
            hint=_HINTS.get(kind),
        )


class _Reading:
    """One stream, as far as it was read.

    The SDK's own accumulator accepts a cut stream and half a tool call; this one wants the end to be there.
    """

    def __init__(self, model: str, on_text: OnText | None) -> None:
        self._model = model
        self._on_text = on_text
        self._texts: list[str] = []
        self._tools: dict[int, tuple[str, str, list[str]]] = {}
        self._usage: dict[str, int] = {}
        self._stop: str | None = None
        self._ended = False
        self._request_id: str | None = None

    def text(self) -> str:
        return "".join(self._texts)

    async def run(self, client: AsyncAnthropic, body: dict[str, Any], headers: dict[str, Any]) -> None:
        stream = await client.messages.create(**body, stream=True, extra_headers=headers)
        async with stream:
            self._request_id = stream.response.headers.get("request-id")
            async for event in stream:
                self._take(event)

    def answer(self) -> Answer:
        if not self._ended or self._stop is None:
            raise ProviderError(
                "the answer ended before it was complete", kind="transport", billed="unknown", partial_text=self.text()
            )
        stop = _STOP_REASONS.get(self._stop)
        if stop is None:
            raise ProviderError(
                f"the model stopped for a reason this version does not know: {safe_text(self._stop)!r}",
                kind="bug",
                billed="unknown",
                partial_text=self.text(),
                hint="upgrade the server",
            )
        tools = sorted(self._tools.items()) if stop == "tool_use" else ()  # elsewhere they may be half a call
        return Answer(
            text=self.text(),
            model=self._model,
            stop_reason=stop,
            tool_uses=tuple(ToolUse(id=i, name=n, input=_input(parts)) for _, (i, n, parts) in tools),
            usage=Usage(
                input_tokens=self._usage.get("input_tokens", 0),
                output_tokens=self._usage.get("output_tokens", 0),
                cache_read_tokens=self._usage.get("cache_read_input_tokens", 0),
                cache_write_tokens=self._usage.get("cache_creation_input_tokens", 0),
            ),
            request_id=self._request_id,
        )

    def _take(self, event: Any) -> None:
        """Take one event in. Kinds that are not known here, such as thinking, are passed over."""
        if event.type == "message_start":
            self._model = event.message.model or self._model
            self._count(event.message.usage)
        elif event.type == "content_block_start":
            block = event.content_block
            if block.type == "text":
                self._say(block.text)
            elif block.type == "tool_use":
                start = [json.dumps(block.input)] if block.input else []
                self._tools[event.index] = (block.id, block.name, start)
        elif event.type == "content_block_delta":
            delta = event.delta
            if delta.type == "text_delta":
                self._say(delta.text)
            elif delta.type == "input_json_delta" and event.index in self._tools:
                self._tools[event.index][2].append(delta.partial_json)
        elif event.type == "message_delta":
            self._stop = event.delta.stop_reason
            self._count(event.usage)
        elif event.type == "message_stop":
            self._ended = True

    def _say(self, text: str) -> None:
        if text:
            self._texts.append(text)
            if self._on_text is not None:
                self._on_text(text)

    def _count(self, usage: Any) -> None:
        # The counts of later events are totals, not additions; what they leave out stands.
        for name in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
            value = getattr(usage, name, None)
            if isinstance(value, int):
                self._usage[name] = value


def api_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Write messages as the API wants them.

    Empty text is dropped, neighbours of one role become one message, and tool results come first in theirs: the API
    refuses anything else.
    """
    merged: list[dict[str, Any]] = []
    for message in messages:
        content = [_api_block(block) for block in message.blocks if not isinstance(block, str) or block.strip()]
        if not content:
            continue
        if merged and merged[-1]["role"] == message.role:
            merged[-1]["content"] += content
        else:
            merged.append({"role": message.role, "content": content})
    for entry in merged:
        if entry["role"] == "user":
            entry["content"].sort(key=lambda block: block["type"] != "tool_result")
    return merged


def classify(error: BaseException) -> ProviderErrorKind:
    """Why a call through the SDK failed."""
    anthropic, httpx2 = _load()
    if isinstance(error, anthropic.APIStatusError):
        status = error.status_code
        if status == _STREAM_BEGAN:
            status = _STATUS_OF_TYPE.get(_text(error.type), 400)
        return kind_of_error(
            status, error_type=_text(error.type), code=error.error_code, message=_text(error.api_message)
        )
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, (anthropic.APIConnectionError, httpx2.TransportError)):
        return "transport"
    return "bug"


def _text(value: object) -> str:
    """What the SDK took from an error's body unchecked, if it is text."""
    return value if isinstance(value, str) else ""


def _api_block(block: Block) -> dict[str, Any]:
    if isinstance(block, str):
        return {"type": "text", "text": block}
    if isinstance(block, ToolUse):
        return {"type": "tool_use", "id": block.id, "name": block.name, "input": block.input}
    result: dict[str, Any] = {"type": "tool_result", "tool_use_id": block.tool_use_id, "content": block.content}
    if block.is_error:
        result["is_error"] = True
    return result


def _input(parts: list[str]) -> dict[str, Any]:
    text = "".join(parts)
    value = json.loads(text) if text.strip() else {}
    if not isinstance(value, dict):
        raise TypeError("a tool's input is no object")
    return value


def _cause(error: BaseException) -> BaseException:
    """The transport's own error, which the SDK wraps."""
    return error.__cause__ if error.__cause__ is not None else error


def _never_sent(error: BaseException) -> bool:
    _, httpx2 = _load()
    return isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout))


def _load() -> tuple[ModuleType, ModuleType]:
    import anthropic
    import httpx2  # noqa: PLC0415 - it comes with the SDK and is loaded with it

    return anthropic, httpx2


def _check_url(url: str) -> tuple[str, bool]:
    """Return the host to name in messages, and whether it is this machine. The URL itself may hold a secret."""
    try:
        parts: SplitResult = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise Invalid("the base URL for Anthropic is malformed", hint="write https://host[:port][/path]") from None
    if parts.scheme not in ("http", "https") or not host:
        raise Invalid("the base URL for Anthropic is malformed", hint="write https://host[:port][/path]")
    if "@" in parts.netloc:
        raise Invalid(
            "the base URL for Anthropic holds a user or password", hint="leave it out; give the key by itself"
        )
    loopback = _is_loopback(host)
    if parts.scheme == "http" and not loopback:
        raise Invalid(
            f"plain HTTP would show the API key to everybody on the way to {safe_text(host)}", hint="use https"
        )
    return safe_text(host if port is None else f"{host}:{port}"), loopback


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
