"""The test kit that is shipped."""

from __future__ import annotations

import asyncio

from ksi_mcp.testing import FakeClock, open_test_app


async def test_a_fake_clock_wakes_sleepers_in_their_order() -> None:
    clock = FakeClock(0)
    woken: list[tuple[str, int]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.now_ms()))

    tasks = [asyncio.create_task(sleeper(name, s)) for name, s in (("late", 2), ("early", 1), ("never", 9))]
    await asyncio.sleep(0)
    await clock.advance(5)
    assert woken == [("early", 1000), ("late", 2000)]
    assert clock.now_ms() == 5000
    tasks[2].cancel()


async def test_an_application_under_test_answers_from_its_replies() -> None:
    async with open_test_app(replies=[{"match": {"agent": "ada"}, "reply": "42"}]) as app:
        await app.call("agent_spawn", name="ada", prompt="You answer.")
        turn = await app.call("agent_send", agent="ada", message="6 x 7?", wait_s=10)
        assert turn["text"] == "42"
