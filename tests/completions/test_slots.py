"""Room for calls: who waits for it, who keeps it, and who hears that there is some again."""

from __future__ import annotations

import asyncio

import pytest

from ksi_mcp.clock import Clock, SystemClock
from ksi_mcp.completions.limiter import NEAR_PACE_S, Limits
from ksi_mcp.completions.slots import Slots
from ksi_mcp.errors import ProviderError
from ksi_mcp.testing import FakeClock


def slots_of(ceiling: int | None, *, clock: Clock | None = None) -> tuple[Slots, list[str]]:
    clock, told = clock or FakeClock(), list[str]()
    slots = Slots(Limits(clock, ceiling=lambda _provider: ceiling, near=lambda _provider: True), clock)
    slots.on_room(lambda: told.append("room"))
    return slots, told


async def answer(slots: Slots) -> None:
    """The provider answers a call: from then on silence counts."""
    await slots.enter("p")
    async with slots.call("p"):
        pass


async def settle() -> None:
    """Let everybody take their next steps."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_call_waits_until_another_has_ended_and_the_queue_hears_of_room_that_is_left() -> None:
    slots, told = slots_of(1)
    await slots.enter("p")
    waiting = asyncio.create_task(slots.enter("p"))
    await asyncio.sleep(0)
    assert not waiting.done()
    async with slots.call("p"):
        pass
    async with asyncio.timeout(1):
        await waiting
    assert (slots.free("p"), told) == (0, [])  # it was handed on
    async with slots.call("p"):
        pass
    assert (slots.free("p"), told) == (1, ["room"])


async def test_those_who_wait_are_served_in_the_order_in_which_they_came_and_before_the_queue() -> None:
    slots, _ = slots_of(2)
    served: list[int] = []

    async def wait(number: int) -> None:
        await slots.enter("p")
        served.append(number)

    waiting = [asyncio.create_task(wait(number)) for number in range(5)]
    await settle()
    assert (served, slots.free("p")) == ([0, 1], -3)
    for so_far in ([0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]):
        slots.leave("p")
        assert not slots.take("p")  # handed over at once, not left for whoever is quickest
        await settle()
        assert served == so_far
    await asyncio.gather(*waiting)


async def test_whoever_is_cancelled_while_waiting_keeps_nothing_even_if_it_was_just_handed_the_slot() -> None:
    slots, _ = slots_of(1)
    await slots.enter("p")
    gone, late, last = (asyncio.create_task(slots.enter("p")) for _ in range(3))
    await settle()
    gone.cancel()
    slots.leave("p")  # before the cancelled one has had its say
    late.cancel()  # after it was handed the slot
    await settle()
    assert (gone.cancelled(), late.cancelled(), last.done()) == (True, True, True)
    slots.leave("p")
    assert slots.free("p") == 1


async def test_whoever_waits_is_woken_when_the_limit_has_grown_by_silence_alone() -> None:
    clock = SystemClock()
    slots, told = slots_of(12, clock=clock)
    await answer(slots)
    async with asyncio.timeout(10 * NEAR_PACE_S):
        await asyncio.gather(*(slots.enter("p") for _ in range(12)))  # eight may begin; no call ends
    assert told == []


async def test_room_that_came_a_moment_ago_is_there_now_and_not_when_the_next_call_ends() -> None:
    clock = FakeClock()
    slots, _ = slots_of(16, clock=clock)
    await answer(slots)
    for _ in range(8):
        assert slots.take("p")
    await clock.advance(NEAR_PACE_S)
    assert slots.opens_in_s("p") == 0
    assert slots.free("p") == 8


async def test_the_worker_learns_when_a_full_provider_has_room_without_any_call_ending() -> None:
    slots, _ = slots_of(16)
    await answer(slots)
    assert slots.opens_in_s("p") is None
    for _ in range(8):
        assert slots.take("p")
    opens_in_s = slots.opens_in_s("p")
    assert opens_in_s is not None
    assert 0 < opens_in_s <= NEAR_PACE_S
    with pytest.raises(ProviderError):
        async with slots.call("p"):
            raise ProviderError("busy", kind="overload", billed="no")
    assert (slots.free("p"), slots.opens_in_s("p")) == (0, None)  # only an end makes room from now on


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
