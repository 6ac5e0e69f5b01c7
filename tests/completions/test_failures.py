from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from ksi_mcp.events.model import Event
from ksi_mcp.providers.base import Answer, Request, ToolUse


def emit(name: str, **more: Any) -> dict[str, Any]:
    return {"name": "event_emit", "input": {"event": name, **more}}


class Odd:
    """A provider that answers what it is told to, or fails as none should."""

    name = "scripted"

    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []

    async def complete(self, request: Request, *, deadline_s: float, on_text: Any = None) -> Answer:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def aclose(self) -> None:
        pass


async def on_writer(house: Any, sql: str) -> None:
    await house.app._db._writer.call(lambda connection: connection.execute(sql))


# -- budgets ----------------------------------------------------------------------------------------


async def test_a_call_that_could_break_the_budget_is_not_made(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", budget={"tokens": 100})
        turn = await house.ask("a")
        assert (turn["status"], turn["error_class"]) == ("failed", "budget")
        assert "100 of 100 tokens left" in turn["error"]
        assert house.calls() == []
        (event,) = house.events("agent:budget_exceeded")
        assert (event["turn"], event["account"], event["limit_kind"]) == (turn["turn"], agent, "tokens")
        house.books()


async def test_the_turns_of_a_budget_are_counted_once_each_however_many_rounds_they_have(open_house) -> None:
    script = {"replies": [{"match": {"round": 1}, "tool_calls": [emit("note:x")]}], "default": {"reply": "ok"}}
    async with open_house(script) as house:
        await house.spawn("a", ("base",), budget={"turns": 2})
        assert [(await house.ask("a"))["status"] for _ in range(3)] == ["done", "done", "failed"]
        house.books()


async def test_a_model_without_a_price_runs_without_a_limit_in_dollars_and_not_with_one(open_house) -> None:
    # No override and an unknown maker: nobody knows what it costs.
    async with open_house(provider="anthropic", prices={}) as house:
        house.app.services.registry._built["anthropic"] = Odd(Answer(text="ok", model="x", stop_reason="end_turn"))
        for name, budget in (("limited", {"usd": 1}), ("free", {"tokens": 100_000})):
            await house.call("agent_spawn", name=name, prompt="p", model="x-nobody-knows", budget=budget)
        turn = await house.ask("limited")
        assert (turn["status"], turn["error_class"]) == ("failed", "budget")
        assert "no price is known for model 'x-nobody-knows'" in turn["error"]
        assert (await house.ask("free"))["status"] == "done"
        house.books()


async def test_a_turn_that_others_reservations_keep_out_runs_when_they_settle(open_house) -> None:
    # One call sets aside 4,096 tokens of output and some hundred of input: only one fits at a time.
    script = {"default": {"reply": "ok", "latency_s": 1, "usage": {"input_tokens": 5, "output_tokens": 5}}}
    async with open_house(script, budget={"tokens": 6_000}) as house:
        turns = []
        for name in ("a", "b", "c"):
            await house.spawn(name)
            turns.append((await house.call("agent_send", agent=name, message="go"))["turn"])
        await house.started()
        await house.until(lambda: house.rows("SELECT COUNT(*) FROM turn WHERE state = 'blocked'") == [(2,)])
        assert len(house.calls()) == 1
        house.gate.opened.set()
        done = await house.call("agent_wait", turns=turns)
        assert done["census"]["ok"] == 3
        house.books()


async def test_an_overrun_is_booked_whole_and_closes_the_account(open_house) -> None:
    script = {"default": {"reply": "ok", "usage": {"input_tokens": 20_000, "output_tokens": 0}}}
    async with open_house(script) as house:
        await house.spawn("a", budget={"usd": 0.01})
        first, second = await house.ask("a"), await house.ask("a")
        assert (first["status"], first["cost_usd"]) == ("done", 0.02)  # 20,000 tokens at 1 USD per million
        assert (second["status"], second["error_class"]) == ("failed", "budget")
        assert "closed" in second["error"]
        assert house.events("budget:overrun")[0]["cost_usd_micros"] == 20_000
        house.books()


# -- retries ----------------------------------------------------------------------------------------


async def test_an_overloaded_provider_is_asked_again_and_nothing_is_charged_for_the_refusal(open_house) -> None:
    fail = {"kind": "overload", "status": 529, "retry_after_s": 0, "times": 2}
    async with open_house({"default": {"reply": "at last", "fail": fail}}) as house:
        await house.spawn("a")
        turn = await house.ask("a")
        assert (turn["status"], turn["text"], turn["attempts"]) == ("done", "at last", 3)
        assert house.calls() == [(1, "failed"), (1, "failed"), (1, "answered")]
        refusals = house.rows("SELECT error_kind, cost_usd_micros FROM provider_call WHERE state = 'failed'")
        assert refusals == [("overload", 0)] * 2
        retrying = house.events("completion:retrying")
        assert [(event["kind"], event["delay_s"]) for event in retrying] == [("overload", 0)] * 2
        assert house.rows("SELECT tries FROM turn") == [(0,)]
        house.books()


async def test_a_call_that_may_have_left_is_paid_in_full_and_made_again(open_house) -> None:
    fail = {"kind": "mid_stream", "status": 529, "times": 1, "retry_after_s": 0}
    async with open_house({"default": {"reply": "whole words", "fail": fail}}) as house:
        await house.spawn("a")
        turn = await house.ask("a")
        assert turn["status"] == "done"
        assert house.calls() == [(1, "uncertain"), (1, "answered")]
        holds = house.rows("SELECT uncertain, cost_usd_micros = reserved_usd_micros FROM hold ORDER BY rowid")
        assert holds == [(1, 1), (0, 0)]
        assert len(house.events("budget:uncertain")) == 1
        house.books()


async def test_retries_end_and_each_round_counts_its_own(open_house) -> None:
    fail = {"kind": "rate", "retry_after_s": 0}
    script = {
        "replies": [
            {"match": {"round": 1, "agent": "a"}, "tool_calls": [emit("note:x")], "fail": {**fail, "times": 4}},
            {"match": {"round": 2, "agent": "a"}, "reply": "end", "fail": {**fail, "times": 4}},
            {"match": {"agent": "b"}, "fail": fail},
        ]
    }
    async with open_house(script) as house:
        await house.spawn("a", ("base",))
        await house.spawn("b")
        assert (await house.ask("a"))["status"] == "done"
        turn = await house.ask("b")
        assert (turn["status"], turn["error_class"], turn["attempts"]) == ("failed", "infra", 5)
        assert len(house.events("note:x")) == 1
        house.books()


async def test_a_retry_waits_for_its_time_and_keeps_its_place(open_house) -> None:
    fail = {"kind": "overload", "times": 1, "retry_after_s": 60}
    async with open_house({"default": {"reply": "{{prompt}}", "fail": fail}}) as house:
        await house.spawn("a")
        turns = [(await house.call("agent_send", agent="a", message=text))["turn"] for text in ("one", "two")]
        await house.until(lambda: house.rows("SELECT state FROM turn ORDER BY n") == [("retrying",), ("queued",)])
        house.gate.ahead_ms += 76_000  # 60 s, spread by at most a quarter
        house.app.services.journal.rung()
        done = await house.call("agent_wait", turns=turns)
        assert [turn["text"] for turn in done["turns"]] == ["one", "two"]
        house.books()


# -- cancelling -------------------------------------------------------------------------------------


async def test_ending_an_agent_cuts_its_call_off_and_pays_it_in_full(open_house) -> None:
    async with open_house({"default": {"reply": "late", "latency_s": 1}}) as house:
        await house.spawn("a")
        turns = [(await house.call("agent_send", agent="a", message="go"))["turn"] for _ in range(2)]
        await house.started()
        gone = await house.call("agent_terminate", agent="a")
        assert gone["cancelled_turns"] == 2
        done = await house.call("agent_wait", turns=turns)
        assert done["census"]["cancelled"] == 2
        await house.until(lambda: not house.app.worker.busy)
        assert house.calls() == [(1, "uncertain")]
        house.books()
        await house.spawn("a")  # the name is free


async def test_an_agent_that_ends_itself_says_its_last_word_and_does_nothing_more(open_house) -> None:
    script = {
        "replies": [
            {
                "match": {"round": 1},
                "tool_calls": [{"name": "agent_terminate", "input": {"agent": "a"}}, emit("note:x")],
            },
            {"match": {"round": 2}, "reply": "farewell"},
        ]
    }
    async with open_house(script) as house:
        await house.spawn("a", ("base", "spawn_agents"))
        turn = await house.ask("a")
        assert (turn["status"], turn["text"]) == ("done", "farewell")
        assert house.events("note:x") == []
        ((refusal,),) = house.rows("SELECT result FROM tool_call WHERE is_error")
        assert "is not active any more" in refusal
        house.books()


async def test_an_agent_that_has_ended_itself_and_goes_on_calling_tools_is_asked_no_more(open_house) -> None:
    script = {
        "replies": [
            {"match": {"round": 1}, "tool_calls": [{"name": "agent_terminate", "input": {"agent": "a"}}]},
            {"match": {}, "reply": "one more", "tool_calls": [emit("note:x")]},
        ]
    }
    async with open_house(script) as house:
        await house.spawn("a", ("base", "spawn_agents"))
        turn = await house.ask("a")
        assert (turn["status"], turn["error_class"], turn["partial_text"]) == ("failed", "task", "one more")
        assert "its agent has ended" in turn["error"]
        assert house.calls() == [(1, "answered"), (2, "answered")]
        assert house.events("note:x") == []
        house.books()


async def test_a_cancellation_in_the_transaction_of_the_sending_leaves_nothing_set_aside(open_house) -> None:
    script = {"replies": [{"match": {"round": 1}, "tool_calls": [emit("note:x")]}], "default": {"reply": "ok"}}
    async with open_house(script) as house:
        await house.spawn("a", ("base",))
        writer, released, held = house.app._db._writer, threading.Event(), []

        def hold_up(notes: Any) -> None:
            # While this unit holds the writer, the next round's send and the cancellation queue up behind it.
            if not held and any(isinstance(note, Event) and note.name == "note:x" for note in notes):
                held.append(writer.submit(lambda tx: released.wait(5)))

        def waiting() -> str:
            return " ".join(getattr(unit.work, "__qualname__", "") for unit in writer._waiting)

        house.app._db.on_commit(hold_up)
        await house.call("agent_send", agent="a", message="go")
        await house.until(lambda: bool(held) and "TurnRunner._send" in waiting())
        ending = asyncio.create_task(house.call("agent_terminate", agent="a"))
        await house.until(lambda: "Call.commit" in waiting())
        released.set()
        await ending
        await house.until(lambda: not house.app.worker.busy)
        assert house.calls() == [(1, "answered"), (2, "uncertain")]
        house.books()


# -- what nobody expected ---------------------------------------------------------------------------


async def test_a_defect_ends_its_turn_and_not_the_session(open_house, caplog: pytest.LogCaptureFixture) -> None:
    async with open_house() as house:
        good = Answer(text="ok", model="m", stop_reason="end_turn")
        house.app.services.registry._built["scripted"] = Odd(RuntimeError("a secret /path"), good)
        await house.spawn("a")
        first, second = await house.ask("a"), await house.ask("a")
        assert (first["status"], first["error_class"]) == ("failed", "infra")
        assert "secret" not in str(first)
        assert second["status"] == "done"
        assert "that nobody expected" in caplog.text
        house.books()


async def test_text_that_no_store_can_hold_does_not_spoil_a_turn(open_house) -> None:
    use = ToolUse(id="u", name="event_emit", input={"event": "note:x", "data": {"x": "a\ud800"}})
    provider = Odd(
        Answer(text="look \udfff", model="m", stop_reason="tool_use", tool_uses=(use,)),
        Answer(text="end \ud83d", model="m", stop_reason="end_turn"),
    )
    async with open_house() as house:
        house.app.services.registry._built["scripted"] = provider
        await house.spawn("a", ("base",))
        turn = await house.ask("a")
        assert (turn["status"], turn["text"]) == ("done", "end ?")
        assert house.events("note:x") == [{"x": "a?"}]
        for request in provider.requests:
            str(request.messages).encode()
        house.books()


async def test_an_answer_that_could_not_be_stored_is_tried_again_later(open_house) -> None:
    async with open_house({"default": {"reply": "ok"}}) as house:
        await house.spawn("a")
        await on_writer(
            house,
            "CREATE TEMP TRIGGER full BEFORE UPDATE ON provider_call WHEN NEW.state = 'answered' "
            "BEGIN SELECT RAISE(ROLLBACK, 'disk full'); END",
        )
        turn = await house.call("agent_send", agent="a", message="go")
        await house.until(lambda: house.rows("SELECT state FROM turn") == [("retrying",)])
        await on_writer(house, "DROP TRIGGER full")
        house.gate.ahead_ms += 31_000
        house.app.services.journal.rung()
        done = await house.call("agent_wait", turns=[turn["turn"]])
        assert done["census"]["ok"] == 1
        assert house.calls() == [(1, "uncertain"), (1, "answered")]
        house.books()


async def test_the_server_goes_on_when_a_claim_cannot_be_stored(
    open_house, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ksi_mcp.completions.worker.STORE_PAUSE_S", 0.01)
    fail = {"kind": "overload", "times": 1, "retry_after_s": 60}
    async with open_house({"default": {"reply": "ok", "fail": fail}}) as house:
        await house.spawn("a")
        turn = await house.call("agent_send", agent="a", message="go")
        await house.until(lambda: house.rows("SELECT state FROM turn") == [("retrying",)])
        await on_writer(
            house,
            "CREATE TEMP TRIGGER full BEFORE UPDATE ON turn WHEN NEW.state = 'running' "
            "BEGIN SELECT RAISE(ROLLBACK, 'disk full'); END",
        )
        house.gate.ahead_ms += 76_000
        house.app.services.journal.rung()
        await house.until(lambda: "trying again" in caplog.text)
        await on_writer(house, "DROP TRIGGER full")
        done = await house.call("agent_wait", turns=[turn["turn"]])
        assert done["census"]["ok"] == 1
