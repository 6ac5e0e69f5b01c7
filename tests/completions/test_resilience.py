"""What a turn does when its model fails, its budget ends, or its answer is there already."""

from __future__ import annotations

from typing import Any

from ksi_mcp.events.journal import WOKEN

USAGE = {"input_tokens": 100, "output_tokens": 10}
FAIL = {"kind": "overload", "retry_after_s": 0.001}
PRICES = {
    "m": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2},
    "dear": {"input_usd_per_mtok": 100, "output_usd_per_mtok": 200},
    "cheap": {"input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.1},
}


async def agent_with(house: Any, name: str = "a", *, model: str = "m", budget: Any = None, **keys: Any) -> str:
    document = {
        "name": f"of_{name}", "type": "agent", "prompt": "You help.", "model": model, "capabilities": [],
        "max_tokens": 1000, **keys,
    }  # fmt: skip
    await house.call("composition_create", document=document)
    more = {} if budget is None else {"budget": budget}
    return str((await house.call("agent_spawn", composition=f"of_{name}", name=name, **more))["agent"])


def models(house: Any) -> list[str]:
    return [model for (model,) in house.rows("SELECT model FROM provider_call ORDER BY call_id")]


async def later(house: Any, seconds: float) -> None:
    house.gate.ahead_ms += int(seconds * 1000)
    await house.app.services.journal.commit(lambda tx: tx.announce(WOKEN))


async def test_the_next_model_answers_when_the_first_has_failed_for_good(open_house) -> None:
    script = {
        "replies": [{"match": {"model": "m"}, "fail": FAIL}],
        "default": {"reply": "from {{model}}", "usage": USAGE},
    }
    async with open_house(script, prices=PRICES) as house:
        await agent_with(house, fallback=["cheap"])
        turn = await house.ask("a")
        assert (turn["status"], turn["text"], turn["substituted"]) == ("done", "from cheap", True)
        assert "529" in turn["first_error"]
        assert models(house) == ["m"] * 5 + ["cheap"]
        (told,) = house.events("completion:result")
        assert (told["substituted"], told["first_error"]) == (True, turn["first_error"])
        (change,) = house.events("completion:substituted")
        assert (change["from"], change["to"]) == ("m", "cheap")
        # Five failures in a row have opened the circuit: the first choice is not even asked the next time.
        assert (await house.ask("a", "again"))["text"] == "from cheap"
        assert models(house)[6:] == ["cheap"]
        house.books()


async def test_without_another_model_a_turn_parks_until_the_probe_and_the_probe_is_one(open_house) -> None:
    script = {"replies": [{"match": {"agent": "first"}, "fail": FAIL}], "default": {"reply": "well", "usage": USAGE}}
    async with open_house(script, prices=PRICES) as house:
        for name in ("first", "b", "c", "d"):
            await agent_with(house, name)
        assert (await house.ask("first"))["status"] == "failed"
        turns = [(await house.call("agent_send", agent=name, message="hi"))["turn"] for name in ("b", "c", "d")]
        parked = "SELECT COUNT(*) FROM turn WHERE state = 'parked' AND parked_on = 'breaker'"
        await house.until(lambda: house.rows(parked) == [(3,)])
        assert len(models(house)) == 5
        status = await house.call("completion_status", turn=turns[0])
        assert (status["status"], status["parked_on"]) == ("parked", "breaker")
        house.gate.opened.clear()
        await later(house, 31)
        await house.until(lambda: house.rows("SELECT COUNT(*) FROM turn WHERE state = 'done'") == [(1,)])
        await later(house, 31)
        await house.until(lambda: house.rows("SELECT COUNT(*) FROM turn WHERE state = 'done'") == [(3,)])
        assert len(models(house)) == 8
        assert house.events("completion:breaker_closed")[0]["family"] == "m"
        house.books()


async def test_a_parked_turn_holds_its_session_and_can_be_cancelled(open_house) -> None:
    async with open_house({"default": {"reply": "ok", "usage": USAGE}}, prices=PRICES) as house:
        await agent_with(house, model="dear", budget={"usd": 0.0001, "policy": "park"})
        first = (await house.call("agent_send", agent="a", message="one"))["turn"]
        second = (await house.call("agent_send", agent="a", message="two"))["turn"]
        await house.until(lambda: house.rows("SELECT state FROM turn WHERE turn_id = ?", first) == [("parked",)])
        assert house.rows("SELECT state FROM turn WHERE turn_id = ?", second) == [("queued",)]
        assert (await house.call("completion_cancel", turn=first))["cancelled"]
        await house.until(lambda: house.rows("SELECT state FROM turn WHERE turn_id = ?", second) == [("parked",)])
        assert models(house) == []
        house.books()


async def test_who_raises_the_limit_lets_a_parked_turn_go_on(open_house) -> None:
    async with open_house({"default": {"reply": "ok", "usage": USAGE}}, prices=PRICES) as house:
        agent = await agent_with(house, model="dear", budget={"usd": 0.0001, "policy": "park"})
        turn = (await house.call("agent_send", agent="a", message="one"))["turn"]
        await house.until(lambda: house.rows("SELECT state FROM turn") == [("parked",)])
        (asked,) = house.events("completion:parked")
        assert asked["account"] == agent
        await house.call("budget_set", account=agent, limits={"usd": 5})
        done = (await house.call("agent_wait", turns=[turn], timeout_s=10))["turns"][0]
        assert (done["status"], done["text"]) == ("done", "ok")
        house.books()


async def test_a_downgrade_asks_a_model_that_the_budget_can_pay(open_house) -> None:
    async with open_house({"default": {"reply": "from {{model}}", "usage": USAGE}}, prices=PRICES) as house:
        await agent_with(house, model="dear", fallback=["cheap"], budget={"usd": 0.01, "policy": "downgrade"})
        turn = await house.ask("a")
        assert (turn["status"], turn["text"], turn["substituted"]) == ("done", "from cheap", True)
        assert "left" in turn["first_error"]
        house.books()


async def test_a_downgrade_without_a_cheaper_model_is_a_denial(open_house) -> None:
    async with open_house({}, prices=PRICES) as house:
        await agent_with(house, model="dear", budget={"usd": 0.0001, "policy": "downgrade"})
        turn = await house.ask("a")
        assert (turn["status"], turn["error_class"]) == ("failed", "budget")
        assert models(house) == []


async def test_an_agent_whose_account_says_terminate_ends_at_its_limit(open_house) -> None:
    async with open_house({}, prices=PRICES) as house:
        agent = await agent_with(house, model="dear", budget={"usd": 0.0001, "policy": "terminate"})
        assert (await house.ask("a"))["status"] == "failed"
        await house.until(lambda: house.rows("SELECT status FROM agent WHERE agent_id = ?", agent) == [("terminated",)])


async def test_a_run_whose_account_says_terminate_is_stopped_at_its_limit(open_house) -> None:
    async with open_house({}, prices=PRICES) as house:
        pattern = {
            "name": "short", "type": "orchestration", "agents": {"one": {"prompt": "You help.", "model": "dear"}},
            "orchestration_logic": {"strategy": "Ask."}, "budget": {"usd": 0.0001, "policy": "terminate"},
        }  # fmt: skip
        await house.call("composition_create", document=pattern)
        run = await house.call("orchestration_start", pattern="short")
        assert (await house.ask(run["agents"][0]["agent"]))["status"] == "failed"
        await house.until(lambda: house.rows("SELECT state FROM orchestration") == [("stopped",)])
        assert house.rows("SELECT status FROM agent") == [("terminated",)]


async def test_an_equal_request_is_not_bought_again_where_a_cache_was_asked_for(open_house) -> None:
    async with open_house({"default": {"reply": "{{prompt}}!", "usage": USAGE}}, prices=PRICES) as house:
        for name in ("a", "b"):
            await agent_with(house, name, cache="exact")
        await agent_with(house, "c")
        bought = await house.ask("a", "six by seven")
        again = await house.ask("b", "six by seven")
        assert again["text"] == bought["text"] == "six by seven!"
        assert again["reused"]
        assert "reused" not in bought
        assert (await house.ask("b", "seven by six"))["text"] == "seven by six!"  # another request
        assert "reused" not in await house.ask("c", "six by seven")  # who did not ask for it
        assert house.rows("SELECT COUNT(*), COUNT(reused_from) FROM provider_call") == [(4, 1)]
        assert house.rows("SELECT cost_usd_micros FROM turn WHERE reused > 0") == [(0,)]
        assert house.rows("SELECT spent_turns FROM account WHERE account_id = 'global'") == [(3,)]


async def test_a_turn_that_is_taken_over_asks_the_model_it_had_come_to(open_house, tmp_path) -> None:
    slow = {"replies": [{"match": {"model": "m"}, "fail": FAIL}], "default": {"reply": "late", "latency_s": 5}}
    async with open_house(slow, prices=PRICES, root=tmp_path / "h") as house:
        await agent_with(house, fallback=["cheap"])
        await house.call("agent_send", agent="a", message="go")
        await house.started()
    quick = {
        "replies": [{"match": {"model": "m"}, "fail": FAIL}],
        "default": {"reply": "from {{model}}", "usage": USAGE},
    }
    async with open_house(quick, prices=PRICES, root=tmp_path / "h") as house:
        await house.until(lambda: house.rows("SELECT state, result FROM turn") == [("done", "from cheap")])
        assert models(house) == ["m"] * 5 + ["cheap", "cheap"]
        assert house.rows("SELECT state FROM provider_call ORDER BY call_id")[-2:] == [("uncertain",), ("answered",)]
        house.books()
