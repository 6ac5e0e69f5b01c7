"""Turns that go with a batch of their provider, with the real SDK against the simulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ksi_mcp.completions import batching
from ksi_mcp.errors import Invalid, ProviderError
from ksi_mcp.providers.anthropic.provider import AnthropicProvider
from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.web.sim import SimServer

MODEL = "claude-haiku-5-5"  # 0.10 and 0.50 dollars a million tokens; half of that in a batch
USAGE = {"input_tokens": 10_000, "output_tokens": 2_000}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "GATHER_S", 0.02)


@asynccontextmanager
async def batching_house(
    open_house: Any, script: dict[str, Any], **config: Any
) -> AsyncIterator[tuple[Any, SimServer]]:
    async with SimServer(Script(parse_script(script))) as sim:
        anthropic = {"base_url": sim.url, "batch_poll_s": 0.05}
        async with open_house(provider="anthropic", model=MODEL, anthropic=anthropic, prices={}, **config) as house:
            yield house, sim


async def spawn(house: Any, *names: str, **more: Any) -> None:
    for name in names:
        await house.call("agent_spawn", name=name, prompt="You help.", **more)


def stop_batching(house: Any) -> None:
    """From here on a test takes the steps of the loop by itself."""
    for task in house.app._tasks:
        if task.get_name() == "ksi-batches":
            task.cancel()


async def submit(house: Any, *requests: tuple[str, str], **more: Any) -> list[str]:
    asked = [{"agent": agent, "prompt": prompt} for agent, prompt in requests]
    made = await house.call("completion_batch", requests=asked, batch=True, **more)
    return [turn["turn"] for turn in made["turns"]]


async def test_turns_of_a_batch_cost_half_and_their_batch_is_known_before_it_is_asked_after(open_house) -> None:
    script = {"default": {"reply": "{{agent}}: {{prompt}}", "usage": USAGE}}
    async with batching_house(open_house, script) as (house, _):
        await spawn(house, "ann", "bob", "cid")
        turns = await submit(house, ("ann", "one"), ("bob", "two"), ("cid", "three"))
        done = await house.call("agent_wait", turns=turns, timeout_s=20)
        assert [turn["text"] for turn in done["turns"]] == ["ann: one", "bob: two", "cid: three"]
        # 10,000 x 0.10 + 2,000 x 0.50 dollars a million is 0.002, and half of it 0.001.
        assert [turn["cost_usd"] for turn in done["turns"]] == [0.001] * 3
        await house.until(lambda: house.rows("SELECT DISTINCT state FROM batch") == [("ended",)])
        assert house.rows("SELECT SUM(requests) FROM batch") == [(3,)]
        assert len(house.events("completion:batched")) == 3
        assert sum(sent["requests"] for sent in house.events("completion:batch_sent")) == 3
        house.books()


async def test_while_a_batch_is_under_way_its_turns_are_parked_on_it_with_their_money_held(open_house) -> None:
    async with batching_house(open_house, {"default": {"reply": "late", "latency_s": 3600}}) as (house, _):
        await spawn(house, "ann", budget={"usd": 0.01})
        (turn,) = await submit(house, ("ann", "one"))
        await house.until(lambda: house.rows("SELECT 1 FROM batch WHERE asked_at_ms IS NOT NULL") != [])
        seen = await house.call("completion_status", turn=turn)
        assert (seen["status"], seen["parked_on"]) == ("parked", "batch")
        ((held,),) = house.rows("SELECT reserved_usd_micros FROM account WHERE account_id = 'global'")
        assert held > 0
        await house.call("completion_cancel", turn=turn)
        await house.until(lambda: house.rows("SELECT state FROM batch") == [("ended",)])
        house.books()


async def test_a_reply_that_calls_tools_goes_on_outside_of_the_batch(open_house) -> None:
    script = {
        "replies": [
            {"match": {"round": 1}, "reply": "let me see", "tool_calls": [{"name": "agent_list"}], "usage": USAGE},
            {"match": {"round": 2}, "reply": "there is {{results[0].agents[0].name}}", "usage": USAGE},
        ]
    }
    async with batching_house(open_house, script) as (house, sim):
        await spawn(house, "ann", capabilities=["base"])
        (turn,) = await submit(house, ("ann", "who is there?"))
        (done,) = (await house.call("agent_wait", turns=[turn], timeout_s=20))["turns"]
        assert (done["status"], done["text"], done["cost_usd"]) == ("done", "there is ann", 0.003)
        assert house.calls() == [(1, "answered"), (2, "answered")]
        assert len(sim.log) == 1  # of the two rounds only the second was asked for by itself
        house.books()


async def test_what_a_batch_could_not_do_is_tried_again_or_fails_for_nothing(open_house) -> None:
    script = {
        "replies": [
            {"match": {"prompt": "bad"}, "fail": {"kind": "request", "message": "prompt is too long"}},
            {"match": {"prompt": "again"}, "reply": "well", "fail": {"kind": "overload", "times": 1}, "usage": USAGE},
        ]
    }
    async with batching_house(open_house, script) as (house, _):
        await spawn(house, "ann", "bob")
        turns = await submit(house, ("ann", "bad"), ("bob", "again"))
        await house.until(lambda: house.rows("SELECT 1 FROM turn WHERE state = 'retrying'") != [])
        house.gate.ahead_ms += 60_000
        bad, again = (await house.call("agent_wait", turns=turns, timeout_s=20))["turns"]
        assert (bad["status"], bad["error_class"], bad["cost_usd"]) == ("failed", "task", 0)
        assert "prompt is too long" in bad["error"]
        assert (again["status"], again["text"], again["cost_usd"]) == ("done", "well", 0.001)
        house.books()


async def test_the_result_of_a_turn_that_was_cancelled_meanwhile_is_paid_and_dropped(open_house) -> None:
    async with batching_house(open_house, {"default": {"reply": "late", "usage": USAGE}}) as (house, _):
        house.app.batching._poll_s = 3600
        await spawn(house, "ann", "bob")
        turns = await submit(house, ("ann", "one"), ("bob", "two"))
        await house.until(lambda: house.rows("SELECT SUM(requests) FROM batch") == [(2,)])
        await house.call("completion_cancel", turn=turns[0])
        house.app.batching._poll_s = 0.01
        done = await house.call("agent_wait", turns=turns, timeout_s=20)
        assert done["census"] | {"ok": 1, "cancelled": 1} == done["census"]
        await house.until(lambda: house.rows("SELECT 1 FROM provider_call WHERE state = 'sent'") == [])
        assert house.rows("SELECT cost_usd_micros FROM turn ORDER BY n") == [(1000,), (1000,)]
        house.books()


async def test_a_turn_that_is_cancelled_before_its_batch_leaves_costs_nothing(open_house) -> None:
    async with batching_house(open_house, {"default": {"reply": "late"}}) as (house, _):
        stop_batching(house)
        await spawn(house, "ann")
        (turn,) = await submit(house, ("ann", "one"))
        await house.until(lambda: house.rows("SELECT 1 FROM turn WHERE parked_on = 'batch'") != [])
        await house.call("completion_cancel", turn=turn)
        await house.app.services.journal.commit(house.app.batching._release_abandoned)
        assert house.rows("SELECT cost_usd_micros FROM turn") == [(0,)]
        house.books()


async def test_a_worker_that_comes_back_asks_after_the_batches_that_were_under_way(open_house, tmp_path) -> None:
    script = {"default": {"reply": "{{agent}} is back", "usage": USAGE}}
    async with SimServer(Script(parse_script(script))) as sim:
        config = {"provider": "anthropic", "model": MODEL, "prices": {}}
        slow = {"base_url": sim.url, "batch_poll_s": 3600}
        async with open_house(anthropic=slow, **config) as house:
            await spawn(house, "ann", "bob")
            turns = await submit(house, ("ann", "one"), ("bob", "two"))
            await house.until(lambda: house.rows("SELECT SUM(requests) FROM batch") == [(2,)])
            assert await house.app.unfinished()  # a worker stays for it
        async with open_house(anthropic={**slow, "batch_poll_s": 0.05}, **config) as house:
            done = await house.call("agent_wait", turns=turns, timeout_s=20)
            assert [turn["text"] for turn in done["turns"]] == ["ann is back", "bob is back"]
            assert house.rows("SELECT SUM(requests) FROM batch") == [(2,)]  # nothing was bought twice
            house.books()


async def test_a_batch_that_left_with_a_lost_worker_is_paid_in_full_and_sent_again(
    open_house, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = {"default": {"reply": "here", "usage": USAGE}}

    async def killed(self: AnthropicProvider, requests: Any) -> str:
        raise asyncio.CancelledError  # it is as if the process had ended there

    async with SimServer(Script(parse_script(script))) as sim:
        config = {
            "provider": "anthropic", "model": MODEL, "prices": {},
            "anthropic": {"base_url": sim.url, "batch_poll_s": 0.05},
        }  # fmt: skip
        with monkeypatch.context() as lost:
            lost.setattr(AnthropicProvider, "submit_batch", killed)
            async with open_house(**config) as house:
                await spawn(house, "ann")
                (turn,) = await submit(house, ("ann", "one"))
                await house.until(
                    lambda: house.rows("SELECT 1 FROM provider_call WHERE batch_id LIKE 'leaving:%'") != []
                )
                ((reserved,),) = house.rows("SELECT reserved_usd_micros FROM hold")
        async with open_house(**config) as house:
            await house.until(lambda: house.rows("SELECT 1 FROM turn WHERE state = 'retrying'") != [])
            house.gate.ahead_ms += 60_000
            (done,) = (await house.call("agent_wait", turns=[turn], timeout_s=20))["turns"]
            assert (done["status"], done["text"]) == ("done", "here")
            assert house.rows("SELECT state, cost_usd_micros FROM provider_call ORDER BY call_id") == [
                ("uncertain", reserved),
                ("answered", 1000),
            ]
            house.books()


async def test_what_becomes_of_the_agent_meanwhile_changes_no_price(open_house) -> None:
    async with batching_house(open_house, {"default": {"reply": "here", "usage": USAGE}}) as (house, _):
        house.app.batching._poll_s = 3600
        await spawn(house, "ann")
        (turn,) = await submit(house, ("ann", "one"))
        await house.until(lambda: house.rows("SELECT 1 FROM batch") != [])
        await house.call("agent_update", agent="ann", model="claude-opus-5-5")
        house.app.batching._poll_s = 0.01
        (done,) = (await house.call("agent_wait", turns=[turn], timeout_s=20))["turns"]
        assert (done["status"], done["cost_usd"]) == ("done", 0.001)
        assert house.events("budget:overrun") == []
        house.books()


async def test_one_submit_that_fails_is_one_failure_of_its_provider(open_house, monkeypatch) -> None:
    async def overloaded(self: AnthropicProvider, requests: Any) -> str:
        raise ProviderError("overloaded", kind="overload", billed="no")

    async with batching_house(open_house, {"default": {"reply": "here", "usage": USAGE}}) as (house, _):
        names = [f"a{number}" for number in range(8)]
        await spawn(house, *names)
        with monkeypatch.context() as busy:
            busy.setattr(AnthropicProvider, "submit_batch", overloaded)
            await submit(house, *((name, "one") for name in names))
            await house.until(lambda: house.rows("SELECT COUNT(*) FROM turn WHERE state = 'retrying'") == [(8,)])
        assert house.rows("SELECT state, json_array_length(failures) FROM breaker") == [("closed", 1)]


async def test_a_provider_that_breaks_in_an_unexpected_way_leaves_no_turn_behind(open_house, monkeypatch) -> None:
    async def broken(self: AnthropicProvider, requests: Any) -> str:
        raise ZeroDivisionError

    async with batching_house(open_house, {"default": {"reply": "here", "usage": USAGE}}) as (house, _):
        await spawn(house, "ann")
        with monkeypatch.context() as bad:
            bad.setattr(AnthropicProvider, "submit_batch", broken)
            (turn,) = await submit(house, ("ann", "one"))
            await house.until(lambda: house.rows("SELECT 1 FROM turn WHERE state = 'retrying'") != [])
        house.gate.ahead_ms += 60_000
        (done,) = (await house.call("agent_wait", turns=[turn], timeout_s=20))["turns"]
        assert done["text"] == "here"
        assert house.rows("SELECT state FROM provider_call ORDER BY call_id") == [("uncertain",), ("answered",)]
        house.books()


async def test_a_run_that_is_suspended_sends_nothing_until_it_goes_on(open_house) -> None:
    async with batching_house(open_house, {"default": {"reply": "here", "usage": USAGE}}) as (house, _):
        stop_batching(house)
        await house.run("o_1")
        await spawn(house, "ann", orchestration="o_1")
        (turn,) = await submit(house, ("ann", "one"))
        await house.until(lambda: house.rows("SELECT 1 FROM turn WHERE parked_on = 'batch'") != [])
        await house.call("orchestration_control", orchestration="o_1", action="suspend")
        await house.app.batching._send_all()
        assert house.rows("SELECT COUNT(*) FROM batch") == [(0,)]
        await house.call("orchestration_control", orchestration="o_1", action="resume")
        await house.app.batching._send_all()
        assert house.rows("SELECT COUNT(*) FROM batch") == [(1,)]
        house.gate.ahead_ms += 1_000
        await house.app.batching._ask_all()
        assert house.rows("SELECT state, result FROM turn WHERE turn_id = ?", turn) == [("done", "here")]
        house.books()


async def test_a_provider_without_batches_is_refused_and_nothing_is_queued(open_house) -> None:
    async with open_house() as house:
        await house.spawn("ann")
        with pytest.raises(Invalid, match="'ann' is answered by 'scripted', which takes no batches"):
            await submit(house, ("ann", "one"))
        assert house.rows("SELECT COUNT(*) FROM turn") == [(0,)]
        made = await house.call("completion_batch", requests=[{"agent": "ann", "prompt": f"p{n}"} for n in range(3)])
        done = await house.call("agent_wait", turns=[turn["turn"] for turn in made["turns"]], timeout_s=20)
        assert [turn["text"] for turn in done["turns"]] == ["[ann] p0", "[ann] p1", "[ann] p2"]
