"""Room for calls: who waits for it, who keeps it, and who hears that there is some again."""

from __future__ import annotations

import asyncio

import pytest

from ksi_mcp.completions.limiter import Limits
from ksi_mcp.completions.slots import Slots
from ksi_mcp.errors import ProviderError
from ksi_mcp.testing import FakeClock


def slots_of(ceiling: int | None) -> tuple[Slots, list[str]]:
    clock, told = FakeClock(), list[str]()
    slots = Slots(Limits(clock, ceiling=lambda _provider: ceiling), clock)
    slots.on_room(lambda: told.append("room"))
    return slots, told


async def test_a_call_waits_until_another_has_ended_and_the_queue_hears_of_it() -> None:
    slots, told = slots_of(1)
    await slots.enter("p")
    waiting = asyncio.create_task(slots.enter("p"))
    await asyncio.sleep(0)
    assert not waiting.done()
    async with slots.call("p"):
        pass
    async with asyncio.timeout(1):
        await waiting
    assert told == ["room"]


async def test_a_provider_without_a_ceiling_is_never_waited_for_and_tells_nobody() -> None:
    slots, told = slots_of(None)
    for _ in range(1000):
        await slots.enter("p")
    async with slots.call("p"):
        pass
    assert told == []


async def test_what_is_claimed_is_kept_until_its_call_begins() -> None:
    slots, _ = slots_of(2)
    slots.claim("p")
    assert slots.free("p") == 1
    slots.unclaim("p")
    await slots.enter("p")
    assert slots.free("p") == 1
    slots.leave("p")
    assert slots.free("p") == 2


async def test_a_refusal_closes_the_provider_for_as_long_as_it_asks() -> None:
    slots, _ = slots_of(4)
    await slots.enter("p")
    with pytest.raises(ProviderError):
        async with slots.call("p"):
            raise ProviderError("slow down", kind="rate", billed="no", retry_after_s=7)
    assert slots.free("p") == 0
    assert slots.opens_in_s("p") == 7
    assert slots.opens_in_s("other") is None
