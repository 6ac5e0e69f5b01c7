"""Words put into a conversation, turns put in front of others, and how much of a history a turn is shown."""

from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.agents.injections import MAX_CONTENT_CHARS, MAX_WAITING
from ksi_mcp.errors import Conflict, Exhausted, Invalid, KsiError, NotFound, Refused
from ksi_mcp.permissions import agent_actor, fresh_context

SHOWN = {"default": {"reply": "{{system}} | {{prompt}} | {{turn}}"}}
SLOW = {"default": {"reply": "{{turn}}: {{prompt}}", "latency_s": 60}}


async def test_words_go_with_the_next_turn_that_starts_and_stay_in_the_history(open_house) -> None:
    async with open_house(SHOWN) as house:
        await house.spawn("a")
        for position, content in (("after", "C"), ("before", "B"), ("system", "S"), ("before", "B2")):
            put = await house.call("completion_inject", agent="a", content=content, position=position)
        assert (put["mode"], put["position"], put["waiting"]) == ("next", "before", 4)
        assert house.rows("SELECT * FROM turn") == []
        first = await house.ask("a", "ask")
        assert first["text"] == "You help.\n\nS | B\nB2\nask\nC | 1"
        second = await house.ask("a", "more")
        assert second["text"] == "You help. | more | 2"
        past, following = (await house.call("agent_history", agent="a"))["turns"]
        assert past["injected"] == ["B", "B2", "C", "S"]
        assert "injected" not in following
        assert [event["position"] for event in house.events("completion:injected")] == [
            "after", "before", "system", "before",
        ]  # fmt: skip


async def test_what_waits_for_a_turn_does_not_go_into_the_one_that_runs(open_house) -> None:
    async with open_house(SLOW) as house:
        await house.spawn("a")
        running = await house.call("agent_send", agent="a", message="first")
        waiting = await house.call("agent_send", agent="a", message="second")
        await house.started()
        await house.call("completion_inject", agent="a", content="mind the gap")
        house.gate.opened.set()
        done = await house.call("agent_wait", turns=[running["turn"], waiting["turn"]], timeout_s=20)
        assert [turn["text"] for turn in done["turns"]] == ["1: first", "2: mind the gap\nsecond"]


async def test_words_of_a_turn_that_was_cancelled_go_with_the_next_one(open_house) -> None:
    async with open_house(SLOW) as house:
        await house.spawn("a")
        await house.call("completion_inject", agent="a", content="mind the gap")
        running = await house.call("agent_send", agent="a", message="first")
        await house.started()
        await house.call("completion_cancel", turn=running["turn"])
        house.gate.opened.set()
        assert (await house.ask("a", "second"))["text"] == "1: mind the gap\nsecond"


async def test_a_direct_one_is_a_turn_before_those_that_wait(open_house) -> None:
    async with open_house(SLOW) as house:
        await house.spawn("a")
        turns = [(await house.call("agent_send", agent="a", message=text))["turn"] for text in ("one", "two")]
        await house.started()
        put = await house.call("completion_inject", agent="a", content="quick", mode="direct")
        late = await house.call("completion_submit", agent="a", prompt="late")
        next_ = await house.call("completion_submit", agent="a", prompt="next", mode="next")
        house.gate.opened.set()
        every = [*turns, put["turn"], late["turn"], next_["turn"]]
        done = await house.call("agent_wait", turns=every, timeout_s=20)
        assert sorted(turn["text"] for turn in done["turns"]) == ["1: one", "2: quick", "3: next", "4: two", "5: late"]
        assert (await house.ask("a", "after all"))["text"] == "6: after all"
        with pytest.raises(Invalid, match="position='before' goes with mode='next'"):
            await house.call("completion_inject", agent="a", content="x", mode="direct", position="before")


async def test_nothing_is_put_in_where_it_may_not_or_cannot_be(open_house) -> None:
    async with open_house(SHOWN) as house:
        await house.run("o_1")
        boss = await house.spawn("boss", ("base", "messaging", "spawn_agents"), orchestration="o_1")
        await house.spawn("child", parent="boss")
        await house.spawn("peer", orchestration="o_1")
        await house.spawn("far")
        gone = await house.spawn("gone")
        await house.call("agent_terminate", agent="gone")

        async def refused(kind: type[KsiError], match: str, **args: Any) -> None:
            with pytest.raises(kind, match=match):
                await house.call("completion_inject", **args)

        await refused(Conflict, "is terminated", agent=gone, content="x")
        await refused(Conflict, "is terminated", agent=gone, content="x", mode="direct")
        await refused(Invalid, "the content is empty", agent="peer", content=" ")
        await refused(Invalid, "the content has", agent="peer", content="x" * (MAX_CONTENT_CHARS + 1))
        await refused(Invalid, "position", agent="peer", content="x", position="behind")
        for name, kind in (("peer", Refused), ("far", NotFound)):
            with pytest.raises(kind):
                await house.app.toolbox.call(
                    fresh_context(agent_actor(boss)), "completion_inject", {"agent": name, "content": "x"}
                )
        assert house.rows("SELECT * FROM injection") == []
        args = {"agent": "child", "content": "x"}
        done = await house.app.toolbox.call(fresh_context(agent_actor(boss)), "completion_inject", args)
        assert done.data["waiting"] == 1


async def test_only_so_much_may_wait(open_house) -> None:
    async with open_house(SHOWN) as house:
        await house.spawn("a")
        for _ in range(4):
            await house.call("completion_inject", agent="a", content="x" * MAX_CONTENT_CHARS)
        with pytest.raises(Exhausted, match="4 injections with 200,000 characters wait"):
            await house.call("completion_inject", agent="a", content="x")
        await house.spawn("b")
        for _ in range(MAX_WAITING):
            await house.call("completion_inject", agent="b", content="x")
        with pytest.raises(Exhausted, match=f"{MAX_WAITING} injections"):
            await house.call("completion_inject", agent="b", content="x")


async def test_the_same_key_puts_words_in_once(open_house) -> None:
    async with open_house(SHOWN) as house:
        await house.spawn("a")
        for _ in range(2):
            put = await house.call("completion_inject", agent="a", content="x", idempotency_key="k")
        assert put["waiting"] == 1
        assert house.rows("SELECT COUNT(*) FROM injection") == [(1,)]


async def test_a_turn_is_shown_the_newest_whole_turns_that_fit_its_window(open_house) -> None:
    async with open_house({"default": {"reply": "{{turn}}"}}) as house:
        document: dict[str, Any] = {
            "name": "short", "type": "agent", "version": "1.0.0", "description": "forgets", "prompt": "You help.",
            "context": {"max_messages": 5},
        }  # fmt: skip
        await house.call("composition_create", document=document)
        tokens = {**document, "name": "shorter", "context": {"max_tokens": 16 + 2 + 2 * (16 + 2 + 16 + 1)}}
        await house.call("composition_create", document=tokens)
        await house.call("agent_spawn", composition="short", name="a", model="m")
        await house.call("agent_spawn", composition="shorter", name="b", model="m")
        # The prompt and two whole turns before it, in messages as in bytes; all of them stay stored.
        assert [(await house.ask("a", "go"))["text"] for _ in range(5)] == ["1", "2", "3", "3", "3"]
        assert [(await house.ask("b", "go"))["text"] for _ in range(5)] == ["1", "2", "3", "3", "3"]
        assert len((await house.call("agent_history", agent="a"))["turns"]) == 5
