"""Claude through the `anthropic` SDK, which is loaded at the first call: it costs a second and 70 MB.

The SDK is used for its transport and its types only. It never retries here (the worker does, and books each attempt),
it gets its key and host explicitly, since it would otherwise look for them in the environment and in profile files, and
it follows no redirect, which would take a prompt to another host.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ksi_mcp.errors import ProviderError
from ksi_mcp.providers.anthropic import batches
from ksi_mcp.providers.anthropic.reading import Reading
from ksi_mcp.providers.anthropic.sdk import classify, end_of_life, failure, load
from ksi_mcp.providers.anthropic.wire import PromptCache, api_messages, request_body, with_format
from ksi_mcp.providers.base import Answer, OnText, Request
from ksi_mcp.providers.urls import check_url

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

__all__ = ["DEFAULT_BASE_URL", "AnthropicProvider", "api_messages", "classify"]

logger = logging.getLogger(__name__)

DEFAULT_BASE_URL: Final = "https://api.anthropic.com"
_CONNECT_TIMEOUT_S: Final = 10.0
_ASKING_S: Final = 60.0
"""For a question about a batch."""
_MOVING_S: Final = 600.0
"""For sending a batch, or fetching its results."""
_T = TypeVar("_T")


class AnthropicProvider:
    """The Messages API, or anything that speaks it at `base_url` (a gateway, Ollama, the simulator).

    `max_connections` bounds the calls under way at once. `prompt_cache` asks for the API's automatic cache, which
    keeps what requests begin with for so long; its writes cost more than plain input. A loopback host needs no key.
    `name` is the one under which it is known here. It is a `Provider` and a `BatchProvider`.
    """

    def __init__(
        self,
        api_key: str | None,
        base_url: str | None = None,
        max_connections: int = 64,
        *,
        prompt_cache: PromptCache = "5m",
        name: str = "anthropic",
    ) -> None:
        self.name = name
        self._api_key = (api_key or "").strip()
        self._base_url = base_url or DEFAULT_BASE_URL
        self._host, self.loopback = check_url(self._base_url, "Anthropic")
        self._max_connections = max_connections
        self._prompt_cache: PromptCache = prompt_cache
        self._client: AsyncAnthropic | None = None
        self._opening = asyncio.Lock()
        self._told: set[str] = set()
        """Deprecated models that the log has named."""

    @property
    def lacks_key(self) -> bool:
        """Whether no call can be made for want of a key."""
        return not self._api_key and not self.loopback

    async def complete(self, request: Request, *, deadline_s: float, on_text: OnText | None = None) -> Answer:
        """Ask the model once, streaming. `deadline_s` bounds everything, the wait for a connection included."""
        body = self._body(request)
        reading = self._reading(request.model, on_text, request.max_tokens)

        async def ask(client: AsyncAnthropic) -> Answer:
            await reading.run(client, self._quietly(with_format(body, request.output_schema)))
            return reading.answer()

        return await self._call(ask, deadline_s, "no complete answer from", reading.text)

    async def ready(self) -> None:
        """Load the SDK."""
        await self._open()

    async def submit_batch(self, requests: Sequence[tuple[str, Request]]) -> str:
        """Send requests, each under an id of 1 to 64 letters, digits, `-` and `_`; return the id of the batch.

        Raises `ProviderError`: with `billed="no"` nothing was taken, with `unknown` the batch may be at work although
        its id never came.
        """
        bodies = [(custom_id, self._body(request), request.output_schema) for custom_id, request in requests]

        async def send(client: AsyncAnthropic) -> str:
            for _, body, _ in bodies:
                self._tell_of_its_end(body["model"])
            made = batches.entries((custom_id, with_format(body, schema)) for custom_id, body, schema in bodies)
            return await batches.submit(client, made)

        return await self._call(send, _MOVING_S, "the batch was not taken by")

    async def batch_results(self, batch_id: str) -> dict[str, Answer | ProviderError] | None:
        """The results by the caller's ids in any order, once all have ended; None before.

        Raises `ProviderError`; its kind is `request` if the batch is gone, or its results are (after 29 days).
        """

        async def fetch(client: AsyncAnthropic) -> dict[str, Answer | ProviderError] | None:
            return await batches.results(client, batch_id, reading=self._reading, host=self._host, secret=self._api_key)

        return await self._call(fetch, _MOVING_S, "no results of the batch from")

    async def cancel_batch(self, batch_id: str) -> None:
        """Ask that what has not begun is left undone; its results come like any others. Raises `ProviderError`."""
        await self._call(lambda client: batches.cancel(client, batch_id), _ASKING_S, "the batch was not stopped by")

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    async def _open(self) -> AsyncAnthropic:
        if self._client is not None:
            return self._client
        if self.lacks_key:
            raise ProviderError(
                "there is no API key for Anthropic",
                kind="auth",
                billed="no",
                hint="`ksi-mcp credentials set ANTHROPIC_API_KEY` keeps one, or set it where the server starts",
            )
        async with self._opening:
            if self._client is None:
                try:
                    await asyncio.to_thread(load)  # a second of imports: not on the loop
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
        anthropic, httpx2 = load()
        given: dict[str, Any] = {
            "limits": httpx2.Limits(
                max_connections=self._max_connections, max_keepalive_connections=self._max_connections
            ),
            # No time limit of its own but for connecting: the deadline of the call is the limit.
            "timeout": (timeout := httpx2.Timeout(None, connect=_CONNECT_TIMEOUT_S)),
            "auth": self._authorize,
            "follow_redirects": False,
        }
        if self.loopback:  # a proxy from the environment has no business between two programs of one machine
            http = httpx2.AsyncClient(**given, trust_env=False)
        else:
            http = anthropic.DefaultAsyncHttpxClient(**given)
        client: AsyncAnthropic = anthropic.AsyncAnthropic(
            api_key="none", base_url=self._base_url, max_retries=0, timeout=timeout, http_client=http
        )
        return client

    def _authorize(self, request: Any) -> Any:
        """Give the key to what leaves for our host, at the last moment.

        ANTHROPIC_CUSTOM_HEADERS would win over a key given to the SDK, and it logs the headers of its calls.
        """
        request.headers["Authorization"] = f"Bearer {self._api_key or 'none'}"
        request.headers.pop("X-Api-Key", None)
        return request

    async def _call(
        self,
        ask: Callable[[AsyncAnthropic], Awaitable[_T]],
        deadline_s: float,
        late: str,
        partial: Callable[[], str] = str,
    ) -> _T:
        """Ask something of the open client; whatever goes wrong is a `ProviderError`."""
        try:
            async with asyncio.timeout(deadline_s):
                return await ask(await self._open())
        except ProviderError:
            raise
        except TimeoutError:
            raise ProviderError(
                f"{late} {self._host} within {deadline_s:g} s",
                kind="timeout",
                billed="unknown",
                partial_text=partial(),
            ) from None
        except Exception as error:  # noqa: BLE001 - the contract: nothing but ProviderError escapes
            raise failure(error, host=self._host, secret=self._api_key, partial_text=partial()) from None

    def _reading(self, model: str, on_text: OnText | None = None, max_tokens: int | None = None) -> Reading:
        return Reading(
            model=model,
            provider=self.name,
            cache=self._prompt_cache,
            max_tokens=max_tokens,
            secret=self._api_key,
            on_text=on_text,
        )

    def _body(self, request: Request) -> dict[str, Any]:
        return request_body(request, provider=self.name, cache=self._prompt_cache)

    def _quietly(self, body: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call for which the SDK does not warn of the model's end: the log does, once."""
        if not self._tell_of_its_end(body["model"]):
            return body
        return {**body, "model": "", "extra_body": {"model": body["model"]}}

    def _tell_of_its_end(self, model: str) -> bool:
        ends = end_of_life(model)
        if ends is not None and model not in self._told:
            self._told.add(model)
            logger.warning("the model %s is deprecated and ends on %s: choose another", model, ends)
        return ends is not None
