"""Message Batches: many requests at once for half the price, worked on within a day."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ksi_mcp.errors import ProviderError
from ksi_mcp.providers.anthropic.reading import Reading
from ksi_mcp.providers.anthropic.sdk import failure, hint_of, kind_of_type, load, text_of
from ksi_mcp.providers.failures import safe_text

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

    from ksi_mcp.providers.base import Answer

MAX_REQUESTS: Final = 100_000
MAX_BATCH_BYTES: Final = 256_000_000
_MAX_LINE_BYTES: Final = 64_000_000
_MAX_RESULT_BYTES: Final = 1_000_000_000
_CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
_SHOWN: Final = 80
_COUNTS: Final = ("succeeded", "errored", "canceled", "expired")

_T = TypeVar("_T")
NewReading = Callable[[str], Reading]
"""Makes what reads the answer of a model, which is given by its name."""


def entries(requests: Iterable[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Bodies under their ids as the API takes them. Raises `ProviderError` for what it would not take."""
    made: list[dict[str, Any]] = []
    seen: set[str] = set()
    size = 0
    for custom_id, body in requests:
        if not _CUSTOM_ID.fullmatch(custom_id):
            raise _refused(
                f"{custom_id[:_SHOWN]!r} cannot name a request of a batch", "use 1 to 64 letters, digits, - and _"
            )
        if custom_id in seen:
            raise _refused(f"two requests of the batch are named {custom_id!r}", "give each an id of its own")
        seen.add(custom_id)
        size += len(json.dumps(body))
        if len(made) == MAX_REQUESTS or size > MAX_BATCH_BYTES:
            raise _refused(
                f"a batch takes {MAX_REQUESTS} requests and {MAX_BATCH_BYTES // 1_000_000} MB", "send several batches"
            )
        made.append({"custom_id": custom_id, "params": body})
    if not made:
        raise _refused("the batch is empty", "give it a request")
    return made


async def submit(client: AsyncAnthropic, made: list[dict[str, Any]]) -> str:
    """Send the batch; return its id."""
    batch = await client.messages.batches.create(requests=made)  # type: ignore[arg-type]
    if not _BATCH_ID.fullmatch(text_of(batch.id)):
        raise ValueError("the batch has no id")
    return batch.id


async def cancel(client: AsyncAnthropic, batch_id: str) -> None:
    """Ask that nothing more of a batch is begun. That it has ended meanwhile is no failure."""
    anthropic, _ = load()
    try:
        await client.messages.batches.cancel(checked(batch_id))
    except (anthropic.BadRequestError, anthropic.ConflictError):
        batch = await client.messages.batches.retrieve(batch_id)
        if batch.processing_status == "in_progress":
            raise


async def results(
    client: AsyncAnthropic, batch_id: str, *, reading: NewReading, host: str, secret: str
) -> dict[str, Answer | ProviderError] | None:
    """All results by their ids, or None while some are still to come."""
    _, httpx2 = load()
    asking = client.messages.batches.retrieve(checked(batch_id))
    batch = await _asked(asking, batch_id, host=host, secret=secret)
    if batch.processing_status != "ended":
        return None
    # By its known path: the SDK would follow the URL in the batch, with the key, to whatever host that names.
    fetching: Awaitable[Any] = client.get(
        f"/v1/messages/batches/{batch_id}/results",
        cast_to=httpx2.Response,
        options={"headers": {"Accept": "application/x-jsonl, application/json"}},
        stream=True,
    )
    response = await _asked(fetching, batch_id, host=host, secret=secret)
    found: dict[str, Answer | ProviderError] = {}
    try:
        async for line in _lines(response):
            item = json.loads(line)
            custom_id = item["custom_id"]
            if not _CUSTOM_ID.fullmatch(custom_id):
                raise ValueError("a result is named by no id")
            found.setdefault(custom_id, _result(item["result"], reading, host=host, secret=secret))
    finally:
        await response.aclose()
    if len(found) < sum(_counted(batch.request_counts)):
        raise ProviderError(f"{host} broke off the results of the batch", kind="transport", billed="unknown")
    return found


async def _asked(call: Awaitable[_T], batch_id: str, *, host: str, secret: str) -> _T:
    """The answer to a question about a batch.

    Only the API's own word that it does not exist is of kind `request`, which gives the batch up, and with it what it
    cost. Any other refusal of the question, as of a proxy on the way, may pass.
    """
    anthropic, _ = load()
    try:
        return await call
    except anthropic.APIStatusError as error:
        if error.type == "not_found_error":
            raise ProviderError(
                f"{host} knows no batch {batch_id!r}",
                kind="request",
                billed="unknown",
                hint="it was sent with another key, or long ago: send its requests again",
            ) from None
        known = failure(error, host=host, secret=secret)
        if known.kind != "request":
            raise
        raise ProviderError(known.message, kind="server", billed="unknown") from None


def checked(batch_id: str) -> str:
    """An id that may stand in a path. Raises `ProviderError`."""
    if not _BATCH_ID.fullmatch(batch_id):
        raise _refused(f"{batch_id[:_SHOWN]!r} is not the id of a batch", "give the id that submitting it returned")
    return batch_id


def _result(result: Mapping[str, Any], reading: NewReading, *, host: str, secret: str) -> Answer | ProviderError:
    kind = result["type"]
    if kind == "succeeded":
        return _answer(result["message"], reading, host=host)
    if kind == "errored":
        return _errored(result["error"], host=host, secret=secret)
    if kind in ("canceled", "expired"):
        return ProviderError(f"the request was {kind} before {host} worked on it", kind="server", billed="no")
    raise ValueError("a result is of no known type")


def _answer(message: Mapping[str, Any], reading: NewReading, *, host: str) -> Answer | ProviderError:
    """The answer, or why this one cannot be read: the others still can."""
    anthropic, _ = load()
    read = reading(text_of(message.get("model")))
    try:
        read.take_whole(anthropic.types.Message.construct(**message))
        return read.answer()
    except ProviderError as error:
        return error
    except Exception as error:  # noqa: BLE001 - it came from outside and may be anything
        return ProviderError(
            f"the answer of {host} could not be read ({type(error).__name__})", kind="bug", billed="unknown"
        )


def _errored(response: Mapping[str, Any], *, host: str, secret: str) -> ProviderError:
    error = response.get("error")
    inner: Mapping[str, Any] = error if isinstance(error, dict) else {}
    details = inner.get("details")
    code = text_of(details.get("error_code")) if isinstance(details, dict) else ""
    said = text_of(inner.get("message"))
    kind = kind_of_type(text_of(inner.get("type")), code=code, message=said)
    return ProviderError(
        f"{host} refused the request in the batch: {safe_text(said, secret=secret)}",
        kind=kind,
        billed="no",
        hint=hint_of(kind),
    )


def _counted(counts: object) -> list[int]:
    values = (getattr(counts, name, None) for name in _COUNTS)
    return [value for value in values if isinstance(value, int)]


async def _lines(response: Any) -> AsyncIterator[bytes]:
    """The lines of a response, none of them and not all of them without bound."""
    pieces: list[bytes] = []
    line_bytes = all_bytes = 0
    async for chunk in response.aiter_bytes():
        all_bytes += len(chunk)
        first, *others = chunk.split(b"\n")
        for number, part in enumerate((first, *others)):
            if number:
                if line := b"".join(pieces).strip():
                    yield line
                pieces, line_bytes = [], 0
            pieces.append(part)
            line_bytes += len(part)
            if line_bytes > _MAX_LINE_BYTES or all_bytes > _MAX_RESULT_BYTES:
                raise ValueError("the results are longer than any batch's")
    if line := b"".join(pieces).strip():
        yield line


def _refused(message: str, hint: str) -> ProviderError:
    return ProviderError(message, kind="request", billed="no", hint=hint)
