"""A provider of another package, held to what the worker relies on: what it raises, says and counts may be anything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar, cast, get_args

from ksi_mcp.errors import ProviderError, ProviderErrorKind
from ksi_mcp.providers.base import (
    Answer,
    BatchProvider,
    OnText,
    Provider,
    Request,
    StopReason,
    Thinking,
    ToolUse,
    Traits,
    Usage,
)
from ksi_mcp.providers.failures import masked, safe_text

_T = TypeVar("_T")
_MAX_TEXT_CHARS: Final = 4_000_000
_MAX_TOKENS: Final = 100_000_000
_MAX_USD_MICROS: Final = 1_000_000_000_000
_MAX_SESSION_CHARS: Final = 100_000
_MAX_CALLS: Final = 200
_NAME_CHARS: Final = 200
_MAX_WAIT_S: Final = 1_000_000.0
_COUNTS: Final = tuple(name for name in Usage.__slots__ if name != "estimated")


class _Wrong(Exception):
    """What came back is no answer; the text says why, and quotes nothing."""


class GuardedProvider:
    """`inner` under the name that its package gives it; `keys` are those that it was handed, now and later.

    It is a `Provider`, and a `BatchProvider` if `inner` is one: nothing escapes but `ProviderError` and the end of the
    call, the deadline is kept, and no message holds a key.
    """

    def __init__(self, name: str, inner: Provider, keys: Sequence[str]) -> None:
        self.name = name
        self.inner = inner
        self._keys = keys
        traits = getattr(inner, "traits", None)
        if isinstance(traits, Traits):
            self.traits = traits

    async def complete(self, request: Request, *, deadline_s: float, on_text: OnText | None = None) -> Answer:
        """Ask the model once."""
        pieces: list[str] = []
        chars = 0

        def hear(text: str) -> None:
            nonlocal chars
            chars += len(text)
            if not isinstance(text, str) or chars > _MAX_TEXT_CHARS:
                raise _Wrong("its text is none, or without end")
            pieces.append(text)
            if on_text is not None:
                on_text(text)

        async def ask() -> Answer:
            answer = await self.inner.complete(request, deadline_s=deadline_s, on_text=hear)
            return self._checked(answer, request.max_tokens)

        return await self._call(ask, deadline_s, lambda: "".join(pieces))

    async def submit_batch(self, requests: Sequence[tuple[str, Request]]) -> str:
        """As `BatchProvider` says."""

        async def send() -> str:
            batch_id = await self._batches().submit_batch(requests)
            if not isinstance(batch_id, str) or not 0 < len(batch_id) <= _NAME_CHARS:
                raise _Wrong("its batch has no id")
            return batch_id

        return await self._call(send)

    async def batch_results(self, batch_id: str) -> dict[str, Answer | ProviderError] | None:
        """As `BatchProvider` says."""

        async def fetch() -> dict[str, Answer | ProviderError] | None:
            found = await self._batches().batch_results(batch_id)
            return None if found is None else {str(name): self._result(each) for name, each in dict(found).items()}

        return await self._call(fetch)

    async def cancel_batch(self, batch_id: str) -> None:
        """As `BatchProvider` says."""
        await self._call(lambda: self._batches().cancel_batch(batch_id))

    async def aclose(self) -> None:
        """Close what is inside. Raises `ProviderError`."""
        await self._call(self.inner.aclose)

    def _batches(self) -> BatchProvider:
        return cast("BatchProvider", self.inner)

    async def _call(
        self, work: Callable[[], Awaitable[_T]], deadline_s: float | None = None, partial: Callable[[], str] = str
    ) -> _T:
        try:
            async with asyncio.timeout(deadline_s):
                return await work()
        except ProviderError as error:
            raise self._masked(error) from None
        except TimeoutError:
            raise ProviderError(
                f"no complete answer from provider {self.name!r} within its time",
                kind="timeout",
                billed="unknown",
                partial_text=partial(),
            ) from None
        except (Exception, SystemExit) as error:  # noqa: BLE001  whatever another package does
            raise self._failed(error, partial()) from None

    def _failed(self, error: BaseException, partial_text: str = "") -> ProviderError:
        said = f"{type(error).__name__}: {self._safe(_text(error))}".removeprefix(f"{_Wrong.__name__}: ")
        return ProviderError(
            f"provider {self.name!r} from another package failed ({said})",
            kind="bug",
            billed="unknown",
            partial_text=partial_text,
            hint="see its documentation, or report it there",
        )

    def _masked(self, error: ProviderError) -> ProviderError:
        """The same without keys, and with nothing in it that an error cannot have."""
        wait, cost = error.retry_after_s, error.cost_usd_micros
        return ProviderError(
            self._safe(_text(error.message)),
            kind=error.kind if error.kind in get_args(ProviderErrorKind) else "bug",
            billed="no" if error.billed == "no" else "unknown",
            retry_after_s=wait if type(wait) in (int, float) and 0 <= cast("float", wait) <= _MAX_WAIT_S else None,
            partial_text=error.partial_text if isinstance(error.partial_text, str) else "",
            cost_usd_micros=cost if _is_count(cost, _MAX_USD_MICROS) else None,
            hint=None if error.hint is None else self._safe(_text(error.hint)),
        )

    def _result(self, result: object) -> Answer | ProviderError:
        if isinstance(result, ProviderError):
            return self._masked(result)
        try:
            return self._checked(result)
        except Exception as error:  # noqa: BLE001  the other results can still be used
            return self._failed(error)

    def _checked(self, answer: object, max_tokens: int | None = None) -> Answer:
        """The answer, if it is one. Raises `_Wrong`."""
        if not isinstance(answer, Answer):
            raise _Wrong(f"it answered with {type(answer).__name__[:60]}, not with an Answer")
        usage, cost = answer.usage, answer.cost_usd_micros
        if not isinstance(usage, Usage) or not all(_is_count(getattr(usage, name), _MAX_TOKENS) for name in _COUNTS):
            raise _Wrong("its usage is none")
        if cost is not None and not _is_count(cost, _MAX_USD_MICROS):
            raise _Wrong("its cost is none")
        if not isinstance(answer.text, str) or len(answer.text) > _MAX_TEXT_CHARS or not isinstance(answer.model, str):
            raise _Wrong("its text or its model is none")
        if answer.stop_reason not in get_args(StopReason):
            raise _Wrong("it stopped for a reason that there is not")
        thinking = tuple(answer.thinking)
        if not all(map(_is_thinking, thinking)) or not (answer.session is None or _is_small(answer.session)):
            raise _Wrong("its thinking or its session is no small JSON object")
        uses = tuple(answer.tool_uses)
        if len(uses) > _MAX_CALLS or not all(map(_is_use, uses)) or bool(uses) != (answer.stop_reason == "tool_use"):
            raise _Wrong("its tool calls are none, or do not go with its reason to stop")
        return Answer(
            text=answer.text,
            model=self._name(answer.model),
            stop_reason=answer.stop_reason,
            tool_uses=tuple(ToolUse(id=self._name(u.id), name=self._name(u.name), input=u.input) for u in uses),
            usage=_believed(answer, max_tokens),
            request_id=None if answer.request_id is None else self._name(str(answer.request_id)),
            cost_usd_micros=cost,
            thinking=thinking,
            session=answer.session,
        )

    def _name(self, text: str) -> str:
        for key in self._keys:
            text = masked(text, key)
        return text[:_NAME_CHARS]

    def _safe(self, text: str) -> str:
        for key in self._keys:
            text = masked(text, key)
        return safe_text(text)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001  an error of theirs may fail to say what it is
        return "it does not say why"


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _believed(answer: Answer, max_tokens: int | None) -> Usage:
    """The usage; without a count where there must be one, with a bound from the bytes: nobody is taken to be free."""
    usage, cost = answer.usage, answer.cost_usd_micros
    came = len(answer.text.encode("utf-8", "replace")) + sum(len(json.dumps(use.input)) for use in answer.tool_uses)
    bound = 0 if usage.output_tokens else min(came, came if max_tokens is None else max_tokens)
    if cost is not None or (usage.total_tokens > usage.output_tokens and not bound):
        return usage
    return replace(usage, output_tokens=usage.output_tokens or bound, estimated=True)


def _is_thinking(thought: object) -> bool:
    if not isinstance(thought, Thinking) or not isinstance(thought.provider, str):
        return False
    return isinstance(thought.model, str) and isinstance(thought.data, Mapping) and _is_json(dict(thought.data))


def _is_use(use: object) -> bool:
    if not isinstance(use, ToolUse) or not isinstance(use.id, str) or not isinstance(use.name, str):
        return False
    return isinstance(use.input, dict) and _is_json(use.input)


def _is_small(session: object) -> bool:
    return isinstance(session, Mapping) and _is_json(dict(session), _MAX_SESSION_CHARS)


def _is_json(value: Any, most_chars: int = _MAX_TEXT_CHARS) -> bool:
    try:
        return len(json.dumps(value, allow_nan=False)) <= most_chars
    except (TypeError, ValueError, RecursionError):
        return False
