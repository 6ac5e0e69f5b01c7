from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.errors import ProviderError
from ksi_mcp.providers.base import Message, Thinking, ToolResult, ToolUse, Usage
from ksi_mcp.providers.claude import events
from ksi_mcp.providers.claude.events import Reading, Spent


def stream(text: str) -> dict[str, Any]:
    return {
        "type": "stream_event",
        "event": {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}},
    }


START = {"type": "stream_event", "event": {"type": "message_start", "message": {"model": "claude-haiku-5-5"}}}


def read(*said: dict[str, Any]) -> Reading:
    reading = Reading()
    for event in said:
        reading.take(event)
    return reading


def result(**more: Any) -> dict[str, Any]:
    return {"type": "result", "subtype": "success", "is_error": False, "session_id": "s1", **more}


def retry(status: int | None, delay_ms: int = 500) -> dict[str, Any]:
    kind = "rate_limit" if status == 429 else "unknown"
    return {"type": "system", "subtype": "api_retry", "error_status": status, "retry_delay_ms": delay_ms, "error": kind}


def failure(*said: dict[str, Any], now_s: float = 0) -> ProviderError:
    error = events.failure_of(read(*said), now_s=now_s)
    assert error is not None
    return error


def test_text_comes_as_it_is_said_and_answers_are_parted() -> None:
    reading = Reading()
    told = [reading.take(event) for event in (START, stream("Let me "), stream("look."), START, stream("Done \ud800."))]
    assert told == ["", "Let me ", "look.", "\n\n", "Done ?."]
    assert reading.text == "Let me look.\n\nDone ?."
    assert (reading.model, reading.began) == ("claude-haiku-5-5", True)


def test_what_a_helper_of_it_says_is_not_its_answer() -> None:
    assert read({**START, "parent_tool_use_id": "t1"}, {**stream("aside"), "parent_tool_use_id": "t1"}).text == ""


@pytest.mark.parametrize(
    "event",
    [
        {}, {"type": 1}, {"type": "stream_event"}, {"type": "stream_event", "event": [1]}, {"type": "system"},
        {"type": "stream_event", "event": {"type": "content_block_delta", "delta": {"type": "text_delta", "text": 3}}},
        {"type": "system", "subtype": "api_retry", "error_status": "x", "retry_delay_ms": None, "error": {}},
        {"type": "rate_limit_event", "rate_limit_info": 5}, {"type": "assistant", "message": None},
    ],
)  # fmt: skip
def test_no_event_however_odd_breaks_the_reading(event: dict[str, Any]) -> None:
    reading = read(event)
    assert reading.text == ""
    events.refused_at_first(reading)


def test_an_answer_with_its_tokens_of_every_kind() -> None:
    usage = {
        "input_tokens": 10, "output_tokens": 20, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 50,
        "cache_creation": {"ephemeral_1h_input_tokens": 40, "ephemeral_5m_input_tokens": 10},
        "server_tool_use": {"web_search_requests": 2},
    }  # fmt: skip
    reading = read(START, result(result="Hi", stop_reason="end_turn", usage=usage))
    answer = events.answer_of(reading, model="haiku", cost=123, wants_object=False)
    assert (answer.text, answer.model, answer.stop_reason) == ("Hi", "claude-haiku-5-5", "end_turn")
    assert (answer.cost_usd_micros, answer.tool_uses) == (123, ())
    assert answer.usage == Usage(
        input_tokens=10, output_tokens=20, cache_read_tokens=30, cache_write_tokens=10, cache_write_1h_tokens=40,
        web_searches=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "stop"),
    [("max_tokens", "max_tokens"), ("refusal", "refusal"), ("stop_sequence", "end_turn"), (None, "end_turn")],
)
def test_why_it_stopped(said: str | None, stop: str) -> None:
    reading = read(result(result="x", stop_reason=said))
    assert events.answer_of(reading, model="m", cost=None, wants_object=False).stop_reason == stop


def test_an_object_that_was_asked_for_is_the_answer() -> None:
    reading = read(result(result="prose", structured_output={"name": "Ada"}))
    assert events.answer_of(reading, model="m", cost=None, wants_object=True).text == '{"name": "Ada"}'
    assert events.answer_of(reading, model="m", cost=None, wants_object=False).text == "prose"


def counted(total_usd: float | None, tokens: int, turn_tokens: int) -> dict[str, Any]:
    return result(
        total_cost_usd=total_usd,
        usage={"input_tokens": turn_tokens},
        modelUsage={"a": {"inputTokens": tokens - 1, "outputTokens": 1}, "b": "odd"},
    )


@pytest.mark.parametrize(
    ("total_usd", "tokens", "resumed", "cost"),
    [
        (0.000_300, 300, False, 200),  # one process, or a session that went on counting
        (0.000_300, 300, True, 200),
        (0.000_300_000_000_1, 300, True, 200),
        (0.000_300_2, 300, True, 201),  # rounded up, once: the sum of all differences is the whole
        (0.000_120, 110, True, 120),  # the process before was killed: the count began anew
        (0.000_090, 300, True, 90),  # less than before cannot be a sum
        (None, 300, True, None), (-1.0, 300, True, None), (float("nan"), 300, True, None),
    ],
)  # fmt: skip
def test_a_turn_costs_the_difference_of_what_its_session_counts(
    total_usd: float | None, tokens: int, resumed: bool, cost: int | None
) -> None:
    before = Spent(usd_micros=100, tokens=200)
    assert events.turn_cost(counted(total_usd, tokens, 100), before, resumed=resumed)[0] == cost


def test_the_differences_add_up_to_the_whole() -> None:
    spent, booked = Spent(), 0
    for turn in range(1, 1000):
        cost, spent = events.turn_cost(counted(turn * 0.000_000_37, turn * 10, 10), spent, resumed=False)
        booked += cost or 0
    assert booked == 370


@pytest.mark.parametrize(
    ("more", "kind", "billed"),
    [
        ({"result": "Not logged in · Please run /login"}, "auth", "no"),
        ({"result": "Failed to authenticate. API Error: 401 no", "api_error_status": 401}, "auth", "no"),
        ({"result": "API Error: Request rejected (429)", "api_error_status": 429}, "rate", "no"),
        ({"result": "API Error: 529 overloaded", "api_error_status": 529}, "overload", "no"),
        ({"result": "API Error: 500", "api_error_status": 500}, "server", "no"),
        ({"result": "API Error: 400 prompt is too long", "api_error_status": 400}, "request", "no"),
        ({"result": "API Error: 402", "api_error_status": 402}, "budget", "no"),
        ({"result": "API Error: Your credit balance is too low", "api_error_status": 400}, "budget", "no"),
        ({"result": "API Error: Connection to the API was lost (ECONNRESET)."}, "transport", "no"),
        ({"subtype": "error_max_budget_usd", "errors": ["Reached maximum budget ($1)"]}, "budget", "no"),
        ({"subtype": "error_max_turns"}, "request", "no"),
        ({"subtype": "error_max_structured_output_retries"}, "request", "no"),
        (
            {"subtype": "error_during_execution", "errors": ["No conversation found with session ID: x"]},
            "request",
            "no",
        ),
        ({"subtype": "error_of_next_year", "is_error": False, "errors": 5}, "request", "no"),
    ],
)
def test_a_failed_turn_is_told_by_its_result(more: dict[str, Any], kind: str, billed: str) -> None:
    error = failure(result(**{"is_error": True, **more}))
    assert (error.kind, error.billed) == (kind, billed)
    begun = failure(START, stream("so far"), result(**{"is_error": True, **more}))
    assert (begun.billed, begun.partial_text) == ("unknown", "so far")


def test_a_limit_of_the_subscription_says_when_it_is_lifted() -> None:
    limit = {"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": 1000}}
    said = result(is_error=True, result="You've hit your limit", api_error_status=429)
    assert failure(limit, said, now_s=400).retry_after_s == 600
    assert failure(retry(429, 2500), said).retry_after_s == 2.5


@pytest.mark.parametrize(("status", "kind"), [(429, "rate"), (529, "overload"), (500, "server"), (401, "auth")])
def test_a_refusal_of_the_first_call_is_for_the_worker_to_retry(status: int, kind: str) -> None:
    error = events.refused_at_first(read(retry(status, 3000)))
    assert error is not None
    assert (error.kind, error.billed, error.retry_after_s) == (kind, "no", 3)


def test_a_lost_connection_at_first_may_have_cost() -> None:
    error = events.refused_at_first(read(retry(None)))
    assert error is not None
    assert (error.kind, error.billed) == ("transport", "unknown")


def test_a_refusal_in_the_middle_of_a_turn_is_left_to_the_program() -> None:
    assert events.refused_at_first(read(START, stream("half"), retry(529))) is None
    assert events.refused_at_first(read(retry(529), START)) is None


def test_what_it_says_of_itself_gives_no_key_away() -> None:
    error = failure(result(is_error=True, result="invalid x-api-key sk-canary-0123456789 at https://me:pw@host/"))
    assert "canary" not in error.text()
    assert "me:pw" not in error.text()
    assert "canary" not in events.died(Reading(), asked=True, code=1, said="token sk-canary-0123456789").text()


HISTORY = (
    Message(role="user", blocks=("Who is Ada?", "  ")),
    Message(
        role="assistant",
        blocks=(
            Thinking(provider="anthropic", model="m", data={"type": "thinking"}),
            "I look.",
            ToolUse(id="t1", name="agent_get", input={"agent": "ada"}),
        ),
    ),
    Message(role="user", blocks=(ToolResult(tool_use_id="t1", content="idle"),)),
    Message(role="assistant", blocks=("She is idle.",)),
)


def test_a_transcript_holds_every_turn_with_its_tools_and_then_the_prompt() -> None:
    text = events.transcript(HISTORY, Message(role="user", blocks=("And now?",)))
    parts = ["Who is Ada?", "I look.", '[called the tool agent_get with {"agent": "ada"}]', "[the tool answered: idle]"]
    places = [text.index(part) for part in (*parts, "She is idle.", "And now?")]
    assert places == sorted(places)
    assert "thinking" not in text
    assert events.transcript((), Message(role="user", blocks=("And now?",))) == "And now?"


@pytest.mark.parametrize(("said", "sent"), [("/cost now", " /cost now"), ("see /tmp", "see /tmp"), ("a\ud800", "a?")])
def test_a_prompt_is_never_a_command(said: str, sent: str) -> None:
    assert events.prompt_of(Message(role="user", blocks=(said,))) == sent


def test_the_digest_tells_conversations_apart_by_what_a_model_is_shown() -> None:
    other_id = (*HISTORY[:1], Message(role="assistant", blocks=("I look.", ToolUse(id="x", name="agent_get", input={"agent": "ada"}))), *HISTORY[2:])  # fmt: skip  # noqa: E501
    assert events.digest_of(HISTORY) == events.digest_of(other_id)
    assert events.digest_of(HISTORY) != events.digest_of(HISTORY[:3])
    assert events.digest_of(HISTORY[:1]) != events.digest_of([Message(role="assistant", blocks=("Who is Ada?",))])
