from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from ksi_mcp.tools.call import Call
from ksi_mcp.tools.catalog import ALL_TOOLS, DEFAULT_TOOLS
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.transports.faces.listing import OPEN_WORLD, brief, listed

TOKEN_BUDGET = 4_000


class Nothing(View):
    pass


def shown(tools):
    return [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in tools]


async def test_the_default_list_is_small_and_in_the_declared_order(serve):
    async with serve() as (_, client):
        tools = (await client.list_tools()).tools
    assert [each.name for each in tools] == list(DEFAULT_TOOLS)
    assert len(tools) <= 24
    wire = json.dumps(shown(tools), ensure_ascii=False, separators=(",", ":")).encode()
    assert len(wire) / 4 <= TOKEN_BUDGET


async def test_the_full_list_has_every_tool(serve):
    async with serve(tools="full") as (_, client):
        assert [each.name for each in (await client.list_tools()).tools] == [each.name for each in ALL_TOOLS]


async def test_every_tool_says_what_it_does_to_the_world(serve):
    async with serve(tools="full") as (_, client):
        tools = {each.name: each for each in (await client.list_tools()).tools}
    for declared in ALL_TOOLS:
        one = tools[declared.name]
        assert one.title
        assert one.output_schema is None
        assert one.input_schema["type"] == "object"
        assert one.annotations is not None
        # What is left out means false by the protocol, and nothing at all for a tool that only reads.
        assert bool(one.annotations.read_only_hint) is (declared.effects == "reads")
        if declared.effects == "reads":
            assert (one.annotations.destructive_hint, one.annotations.idempotent_hint) == (None, None)
        else:
            assert one.annotations.destructive_hint is (declared.effects == "destroys")
            assert bool(one.annotations.idempotent_hint) is declared.idempotent
    assert set(tools) >= OPEN_WORLD
    assert tools["agent_send"].annotations.open_world_hint is True
    assert tools["agent_list"].annotations.open_world_hint is False


def test_a_listed_schema_leaves_out_guards_and_deep_properties_but_no_parameter():
    for declared in ALL_TOOLS:
        whole, short = declared.schema(), brief(declared.schema())
        assert list(short["properties"]) == list(whole["properties"])
        assert short.get("required") == whole.get("required")
    send = listed(next(each for each in ALL_TOOLS if each.name == "agent_send")).input_schema
    assert "maxLength" not in send["properties"]["agent"]
    assert send["properties"]["wait_s"]["maximum"] == 55


async def test_a_tool_that_is_not_listed_can_be_called(serve):
    assert "budget_status" not in DEFAULT_TOOLS
    async with serve() as (_, client):
        result = await client.call_tool("budget_status", {})
    assert not result.is_error
    assert result.structured_content["accounts"][0]["account"] == "global"


async def test_text_and_structured_content_are_the_same_data(serve):
    async with serve() as (_, client):
        result = await client.call_tool("agent_spawn", {"prompt": "you count über ☃", "name": "counter"})
    assert result.structured_content["name"] == "counter"
    [text] = result.content
    assert json.loads(text.text) == result.structured_content
    assert ": " not in text.text.partition("created_at")[0]


async def test_an_expected_failure_reaches_the_model_word_by_word(serve):
    async with serve() as (_, client):
        result = await client.call_tool("agent_send", {"agent": "nobody", "message": "hi"})
    assert result.is_error
    assert result.content[0].text.startswith("unknown agent 'nobody'; ")
    assert result.structured_content is None


async def test_an_unexpected_failure_is_logged_and_masked(serve, caplog):
    @tool("agent_crash", needs="base", effects="reads", title="Crash")
    async def crash(call: Call) -> Nothing:
        """Crash."""
        raise RuntimeError("the password is swordfish")

    async with serve(more=(crash,)) as (_, client):
        result = await client.call_tool("agent_crash", {})
        assert not (await client.call_tool("agent_list", {})).is_error
    assert result.is_error
    assert result.content[0].text == "internal error; the server's log has it"
    assert "swordfish" in caplog.text


async def test_progress_arrives_while_a_call_waits(serve):
    heard = asyncio.Event()

    async def progress(done: float, total: float | None, message: str | None) -> None:
        assert (done, total, message) == (0, 1, "0 of 1 events have arrived")
        heard.set()

    async with serve() as (_, client):
        waiting = asyncio.create_task(
            client.call_tool("event_wait", {"names": ["note:*"], "timeout_s": 50}, progress_callback=progress)
        )
        await asyncio.wait_for(heard.wait(), 10)
        await client.call_tool("event_emit", {"event": "note:made", "data": {"n": 1}})
        result = await asyncio.wait_for(waiting, 10)
    assert result.structured_content["complete"] is True
    assert result.structured_content["events"][0]["data"] == {"n": 1}


async def test_a_cancelled_call_ends_at_once_and_the_connection_lives(serve):
    begun, ended = asyncio.Event(), asyncio.Event()

    @tool("agent_sleep", needs="base", effects="reads", title="Sleep")
    async def sleep(call: Call) -> Nothing:
        """Sleep for ever."""
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return Nothing()

    async with serve(more=(sleep,)) as (_, client):
        call = asyncio.create_task(client.call_tool("agent_sleep", {}))
        await asyncio.wait_for(begun.wait(), 10)
        call.cancel()
        await asyncio.wait_for(ended.wait(), 10)
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not (await client.call_tool("agent_list", {})).is_error


async def test_each_notice_of_progress_is_above_the_one_before(serve):
    @tool("agent_tell", needs="base", effects="reads", title="Tell")
    async def tell(call: Call) -> Nothing:
        """Tell how far it is."""
        for done in (0, 0, 0, 1, 1, 3):
            await call.progress(done, 3, f"{done} of 3")
        return Nothing()

    heard: list[tuple[float, float | None, str | None]] = []

    async def progress(*notice: Any) -> None:
        heard.append(notice)

    async with serve(more=(tell,)) as (_, client):
        assert not (await client.call_tool("agent_tell", {}, progress_callback=progress)).is_error
    assert [done for done, _, _ in heard] == [0, 0.001, 0.002, 1, 1.001, 3]
    assert heard[-1] == (3, 3, "3 of 3")


async def test_giving_up_a_wait_loses_no_turn(serve):
    heard = asyncio.Event()

    async def progress(done: float, total: float | None, message: str | None) -> None:
        heard.set()

    async with serve() as (_, client):
        await client.call_tool("agent_spawn", {"prompt": "x", "name": "slow"})
        sent = await client.call_tool("agent_send", {"agent": "slow", "message": "hi"})
        turns = [sent.structured_content["turn"]]
        waiting = asyncio.create_task(
            client.call_tool("agent_wait", {"turns": turns, "timeout_s": 50}, progress_callback=progress)
        )
        await asyncio.wait_for(heard.wait(), 10)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        again = await client.call_tool("agent_wait", {"turns": turns, "timeout_s": 0})
    assert again.structured_content["census"]["pending"] == 1


async def test_a_failed_call_is_logged_without_a_traceback(serve, caplog):
    caplog.set_level(logging.INFO)
    async with serve() as (_, client):
        await client.call_tool("agent_send", {"agent": "nobody", "message": "hi"})
    assert "Traceback" not in caplog.text
