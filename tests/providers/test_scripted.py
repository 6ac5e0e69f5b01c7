from __future__ import annotations

import asyncio

import pytest

from ksi_mcp.errors import ProviderError
from ksi_mcp.providers.base import Message, Request
from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.providers.scripted import ScriptedProvider

ASK = Request(model="m", system="", messages=(Message(role="user", blocks=("hi",)),), agent="ann")


class CountingClock:
    """Sleeps take no time and are added up."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now_ms(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


async def test_latency_is_waited_on_the_clock_it_was_given() -> None:
    clock = CountingClock()
    provider = ScriptedProvider(Script(parse_script({"defaults": {"latency_s": 3}})), clock)
    assert (await provider.complete(ASK, deadline_s=10)).text == "[ann] hi"
    assert clock.slept == [3]


@pytest.mark.parametrize(
    ("entry", "slept"),
    [
        ({"reply": "late", "latency_s": 30}, [10]),
        ({"reply": "mute", "latency_s": 4, "fail": {"kind": "stall"}}, [4, 6]),
        ({"reply": "mute", "fail": {"kind": "timeout"}}, [10]),
    ],
)
async def test_a_timeout_takes_exactly_the_deadline(entry: dict[str, object], slept: list[float]) -> None:
    clock = CountingClock()
    provider = ScriptedProvider(Script(parse_script({"replies": [entry]})), clock)
    with pytest.raises(ProviderError) as caught:
        await provider.complete(ASK, deadline_s=10)
    assert (caught.value.kind, caught.value.billed) == ("timeout", "unknown")
    assert clock.slept == slept


async def test_a_retry_after_a_scripted_failure_is_answered() -> None:
    entry = {"reply": "at last", "fail": {"kind": "overload", "times": 2, "message": "too busy"}}
    provider = ScriptedProvider(Script(parse_script({"replies": [entry]})), CountingClock())
    for _ in range(2):
        with pytest.raises(ProviderError, match="too busy"):
            await provider.complete(ASK, deadline_s=10)
    assert (await provider.complete(ASK, deadline_s=10)).text == "at last"
    await provider.aclose()
