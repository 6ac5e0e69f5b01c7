"""The scripted provider: deterministic answers without a network, for the demo, for tests and for replay."""

from __future__ import annotations

import asyncio
from typing import Literal

from ksi_mcp.clock import Clock
from ksi_mcp.errors import Invalid, ProviderError, ProviderErrorKind
from ksi_mcp.providers.base import Answer, OnText, Request
from ksi_mcp.providers.failures import kind_of_status
from ksi_mcp.providers.script import Planned, Script, pieces


class ScriptedProvider:
    """Answers from a `Script`, failures included, as an API would that is scripted the same way."""

    name = "scripted"

    def __init__(self, script: Script, clock: Clock) -> None:
        self._script = script
        self._clock = clock

    async def complete(self, request: Request, *, deadline_s: float, on_text: OnText | None = None) -> Answer:
        """Wait as long as the script says, stream the text in a few pieces, then answer or fail.

        A script whose templates cannot be filled fails the call with kind `request`.
        """
        try:
            planned = self._script.answer(request)
        except Invalid as error:
            raise ProviderError(error.message, kind="request", billed="no", hint=error.hint) from error
        if planned.latency_s > deadline_s:
            await self._clock.sleep(deadline_s)
            raise _timeout(planned, deadline_s, "")
        if planned.latency_s > 0:
            await self._clock.sleep(planned.latency_s)
        if planned.fail is not None:
            raise await self._failure(planned, deadline_s, on_text)
        await _stream(planned.text, on_text)
        return Answer(
            text=planned.text,
            model=planned.model,
            stop_reason=planned.stop_reason,
            tool_uses=planned.tool_uses,
            usage=planned.usage,
            request_id=planned.request_id,
        )

    async def aclose(self) -> None:
        """There is nothing to close."""

    async def _failure(self, planned: Planned, deadline_s: float, on_text: OnText | None) -> ProviderError:
        fail = planned.fail
        assert fail is not None  # noqa: S101 - the caller saw it
        partial = planned.partial()
        await _stream(partial, on_text)
        if fail.kind in ("stall", "timeout"):
            await self._clock.sleep(deadline_s - planned.latency_s)
            return _timeout(planned, deadline_s, partial)
        status = fail.http_status
        kind: ProviderErrorKind = "transport" if status is None else kind_of_status(status)
        billed: Literal["no", "unknown"] = "unknown" if fail.kind in ("transport", "drop", "mid_stream") else "no"
        said = "the connection was cut" if status is None else f"status {status}"
        return ProviderError(
            fail.message or f"the scripted call failed: {said}",
            kind=kind,
            billed=billed,
            retry_after_s=fail.retry_after_s,
            partial_text=partial,
        )


async def _stream(text: str, on_text: OnText | None) -> None:
    if on_text is not None:
        for piece in pieces(text):
            on_text(piece)
            await asyncio.sleep(0)  # others get a turn between the pieces
    await asyncio.sleep(0)  # a cancel lands here


def _timeout(planned: Planned, deadline_s: float, partial: str) -> ProviderError:
    message = planned.fail.message if planned.fail is not None else None
    return ProviderError(
        message or f"the scripted call gave no answer within {deadline_s:g} s",
        kind="timeout",
        billed="unknown",
        partial_text=partial,
    )
