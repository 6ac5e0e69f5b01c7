"""What has arrived of an answer is seen before its end, and stays when it never comes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ksi_mcp.completions import streaming
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.web.sim import SimServer


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "EVERY_S", 0.01)


async def test_the_text_of_a_running_turn_can_be_seen_and_survives_its_failure(open_house) -> None:
    stalls = {"reply": "once upon a time there was", "fail": {"kind": "stall", "after_chars": 14}}
    async with (
        SimServer(Script(parse_script({"replies": [stalls]}))) as sim,
        open_house(provider="anthropic", anthropic={"base_url": sim.url}) as house,
    ):
        await house.spawn("ann")
        turn = (await house.call("agent_send", agent="ann", message="tell"))["turn"]
        await house.until(lambda: house.rows("SELECT 1 FROM turn WHERE streamed_chars > 0") != [])
        seen = await house.call("completion_status", turn=turn)
        assert (seen["status"], seen["partial_text"], seen["streamed_chars"]) == ("running", "once upon a ti", 14)
        await house.call("completion_cancel", turn=turn)
        ended = await house.call("completion_status", turn=turn)
        assert (ended["status"], ended["partial_text"]) == ("cancelled", "once upon a ti")
        assert "text" not in ended


async def test_who_waits_is_told_how_far_the_answer_is(open_house) -> None:
    stalls = {"reply": "word " * 200, "fail": {"kind": "stall", "after_chars": 900}}
    told: list[str] = []

    async def progress(done: float, total: float | None, message: str) -> None:
        told.append(message)

    async with (
        SimServer(Script(parse_script({"replies": [stalls]}))) as sim,
        open_house(provider="anthropic", anthropic={"base_url": sim.url}) as house,
    ):
        await house.spawn("ann")
        turn = (await house.call("agent_send", agent="ann", message="tell"))["turn"]
        await house.until(lambda: house.rows("SELECT 1 FROM turn WHERE streamed_chars > 0") != [])
        args: dict[str, Any] = {"turns": [turn], "timeout_s": 5}
        ctx = fresh_context(OPERATOR)
        wait = asyncio.create_task(house.app.toolbox.call(ctx, "agent_wait", args, progress=progress))
        await house.until(lambda: bool(told))
        await house.call("completion_cancel", turn=turn)
        await wait
    assert told[0].startswith("0 of 1 turns have ended; some 225 tokens are under way; ann: ...")
    assert told[0].endswith("word word")


async def test_a_turn_that_is_done_has_no_partial_text(open_house) -> None:
    async with open_house({"replies": [{"reply": "whole answer", "latency_s": 1}]}) as house:
        await house.spawn("ann")
        turn = (await house.call("agent_send", agent="ann", message="tell"))["turn"]
        await house.started()
        house.gate.opened.set()
        done = (await house.call("agent_wait", turns=[turn], timeout_s=10))["turns"][0]
        assert (done["status"], done["text"]) == ("done", "whole answer")
        assert house.rows("SELECT partial_text FROM turn") == [(None,)]
