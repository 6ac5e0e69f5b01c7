from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_mcp.errors import Invalid
from ksi_mcp.providers.base import Message, Request, ToolResult, ToolSpec, ToolUse
from ksi_mcp.providers.script import Script, Situation, load_script, parse_script, pieces, request_tokens


def ask(
    prompt: str = "hi", *, agent: str = "ann", system: str = "", model: str = "m", max_tokens: int = 4096
) -> Request:
    messages = (Message(role="user", blocks=(prompt,)),)
    return Request(model=model, system=system, messages=messages, agent=agent, max_tokens=max_tokens)


def texts(script: Script, *requests: Request) -> list[str]:
    return [script.answer(request).text for request in requests]


def test_a_script_is_read_from_yaml() -> None:
    script = Script(
        load_script("""
defaults: {latency_s: 0.05, model: pretend-1}
replies:
  - match: {agent: "analyst*", prompt: "/score (\\\\d+)/i"}
    reply: "{{agent}} saw {{groups[1]}}"
    latency_s: 0.2
default: {reply: ok}
""")
    )
    found = script.answer(ask("the SCORE 7", agent="analyst-1"))
    assert (found.text, found.latency_s, found.model, found.rule) == ("analyst-1 saw 7", 0.2, "pretend-1", "replies[0]")
    other = script.answer(ask("the score 7", agent="critic"))
    assert (other.text, other.latency_s, other.rule) == ("ok", 0.05, "default")


def test_the_first_entry_that_matches_answers() -> None:
    script = Script(
        parse_script({"replies": [{"match": {"prompt": "b"}, "reply": "1"}, {"reply": "2"}, {"reply": "3"}]})
    )
    assert texts(script, ask("abc"), ask("xyz")) == ["1", "2"]


@pytest.mark.parametrize(
    ("match", "holds"),
    [
        ({"agent": "an*"}, True),
        ({"agent": "AN*"}, False),
        ({"model": "claude-*"}, True),
        ({"model": "claude"}, False),
        ({"system": "brief"}, True),
        ({"system": "/^be/"}, True),
        ({"system": "/^brief/"}, False),
        ({"prompt": "lo wor"}, True),
        ({"prompt": "/LO/"}, False),
        ({"prompt": "/LO/i"}, True),
        ({"prompt": "/"}, False),
        ({"turn": 1}, True),
        ({"turn": 2}, False),
        ({"round": 1}, True),
        ({"round": 2}, False),
        ({"agent": "ann", "prompt": "bye"}, False),
        ({}, True),
    ],
)
def test_all_of_a_match_must_hold(match: dict[str, Any], holds: bool) -> None:
    script = Script(parse_script({"replies": [{"match": match, "reply": "yes"}], "default": {"reply": "no"}}))
    request = ask("hello world", agent="ann", system="be brief", model="claude-haiku-5-5")
    assert texts(script, request) == ["yes" if holds else "no"]


def test_turn_and_round_are_read_off_the_messages() -> None:
    use = ToolUse(id="t1", name="look", input={})
    messages = (
        Message(role="user", blocks=("one",)),
        Message(role="assistant", blocks=("1",)),
        Message(role="user", blocks=("two", "and a half")),
        Message(role="assistant", blocks=(use,)),
        Message(role="user", blocks=(ToolResult(tool_use_id="t1", content="[1]"),)),
        Message(role="assistant", blocks=(use,)),
        Message(role="user", blocks=(ToolResult(tool_use_id="t1", content="plain"),)),
    )
    seen = Situation.of(Request(model="m", system="", messages=messages))
    assert (seen.turn, seen.round, seen.prompt, seen.results) == (2, 3, "two\nand a half", ([1], "plain"))


def test_a_remark_beside_tool_results_begins_no_turn() -> None:
    messages = (
        Message(role="user", blocks=("one",)),
        Message(role="assistant", blocks=(ToolUse(id="t1", name="look", input={}),)),
        Message(role="user", blocks=(ToolResult(tool_use_id="t1", content="[1]"), "Tool loaded.")),
    )
    seen = Situation.of(Request(model="m", system="", messages=messages))
    assert (seen.turn, seen.round, seen.prompt, seen.results) == (1, 2, "one", ([1],))


def test_times_lets_later_entries_answer() -> None:
    script = Script(parse_script({"replies": [{"reply": "a", "times": 2}, {"reply": "b"}]}))
    assert texts(script, ask(), ask(), ask(), ask()) == ["a", "a", "b", "b"]


def test_a_failure_with_times_ends_and_does_not_use_up_the_entry() -> None:
    entry = {"reply": "a", "times": 1, "fail": {"kind": "rate", "times": 2}}
    script = Script(parse_script({"replies": [entry, {"reply": "b"}]}))
    planned = [script.answer(ask()) for _ in range(4)]
    assert [p.fail.kind if p.fail else p.text for p in planned] == ["rate", "rate", "a", "b"]


def test_a_failure_alone_gives_way_to_later_entries() -> None:
    script = Script(parse_script({"replies": [{"fail": {"kind": "server", "times": 1}}, {"reply": "b"}]}))
    assert script.answer(ask()).fail is not None
    assert texts(script, ask()) == ["b"]
    default = Script(parse_script({"default": {"fail": {"kind": "server", "times": 1}}}))
    assert default.answer(ask()).fail is not None
    assert default.answer(ask()).rule == "echo"


def test_without_a_default_the_prompt_is_echoed_shortened() -> None:
    assert texts(Script(parse_script(None)), ask("hi"), ask("x" * 300)) == ["[ann] hi", f"[ann] {'x' * 197}..."]


def test_an_object_becomes_json_text_with_its_types() -> None:
    script = Script(parse_script({"replies": [{"reply": {"turn": "{{turn}}", "by": "{{agent}}", "ok": True}}]}))
    assert texts(script, ask()) == ['{"turn": 1, "by": "ann", "ok": true}']


def test_tool_inputs_are_templates_that_keep_types() -> None:
    call = {"name": "spawn", "input": {"name": "{{agent}}-{{turn}}", "round": "{{round}}"}}
    planned = Script(parse_script({"replies": [{"tool_calls": [call]}]})).answer(ask())
    assert planned.tool_uses[0].input == {"name": "ann-1", "round": 1}
    assert (planned.stop_reason, planned.text) == ("tool_use", "")


def test_a_prompt_is_not_expanded_as_a_template() -> None:
    script = Script(parse_script({"replies": [{"reply": "{{prompt}}"}]}))
    assert texts(script, ask("{{agent}}")) == ["{{agent}}"]


def test_usage_is_a_quarter_of_the_characters_unless_given() -> None:
    script = Script(parse_script({"replies": [{"match": {"turn": 1}, "reply": "x" * 9}]}))
    usage = script.answer(ask("12345678", system="1234")).usage
    assert (usage.input_tokens, usage.output_tokens) == (3, 3)
    given_usage = parse_script({"replies": [{"reply": "x" * 90, "usage": {"output_tokens": 500}}]})
    planned = Script(given_usage).answer(ask(max_tokens=5))
    assert (planned.usage.output_tokens, planned.text, planned.stop_reason) == (500, "x" * 90, "end_turn")


def test_tools_count_as_input() -> None:
    tool = ToolSpec(name="look", description="d" * 40, input_schema={"type": "object"})
    with_tool = Request(model="m", system="", messages=ask().messages, tools=(tool,))
    assert request_tokens(with_tool) > request_tokens(ask()) + 10


def test_the_same_request_gets_the_same_answer_in_another_process() -> None:
    spec = parse_script({"replies": [{"reply": "{{agent}}", "tool_calls": [{"name": "t"}]}]})
    assert Script(spec).answer(ask()) == Script(spec).answer(ask())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"replys": []}, "replys"),
        ({"replies": [{"reply": "a"}, {"replies": "b"}]}, r"replies\[1\]"),
        ({"replies": [{"reply": "a", "match": {"agnet": "x"}}]}, r"replies\[0\]\.match\.agnet"),
        ({"replies": [{}]}, r"replies\[0\].*needs reply, tool_calls or fail"),
        ({"replies": [{"reply": "a", "fail": {"kind": "tired"}}]}, r"replies\[0\]\.fail\.kind"),
        (
            {"replies": [{"reply": "a", "fail": {"kind": "rate", "status": 500}}]},
            "status 500 does not go with kind rate",
        ),
        ({"replies": [{"reply": "a", "fail": {"kind": "drop", "status": 500}}]}, "no status"),
        ({"replies": [{"reply": "a", "fail": {"kind": "rate", "after_chars": 5}}]}, "after_chars"),
        ({"replies": [{"reply": "{{a b}}"}]}, r"replies\[0\].*malformed"),
        ({"replies": [{"tool_calls": [{"name": "t", "input": {"a": ["{{}}"]}}]}]}, "malformed"),
        ({"replies": [{"tool_calls": [{"name": "not a name"}]}]}, r"tool_calls\[0\]\.name"),
        ({"replies": [{"reply": "a", "stop_reason": "tool_use"}]}, "needs tool_calls"),
        ({"replies": [{"tool_calls": [{"name": "t"}], "stop_reason": "max_tokens"}]}, "tool_calls go with"),
        ({"replies": [{"reply": "a", "latency_s": -1}]}, r"replies\[0\]\.latency_s"),
        ({"replies": [{"reply": "a", "latency_s": float("nan")}]}, "latency_s"),
        ({"replies": [{"reply": "a", "times": 0}]}, "times"),
        ({"replies": [{"reply": "a", "match": {"prompt": "/(/"}}]}, "no regular expression"),
        ({"replies": [{"reply": "a", "match": {"prompt": "/(a+)+/"}}]}, "repeats a repeat"),
        ({"replies": [{"reply": "a", "match": {"prompt": "x" * 501}}]}, r"match\.prompt"),
        ({"default": {"reply": "a", "times": 1}}, "default.times"),
        ([], "its top"),
        ("text", "its top"),
    ],
)
def test_a_wrong_script_says_where_and_what(data: Any, said: str) -> None:
    with pytest.raises(Invalid, match=said) as caught:
        parse_script(data)
    assert caught.value.hint


def test_a_reply_that_cannot_be_filled_names_its_entry() -> None:
    script = Script(parse_script({"replies": [{"reply": "{{results[0].id}}"}]}))
    with pytest.raises(Invalid, match=r"replies\[0\] of the script.*results\[0\]\.id"):
        script.answer(ask())


@settings(deadline=None)
@given(st.text(max_size=200), st.integers(1, 8))
def test_pieces_join_to_the_text(text: str, count: int) -> None:
    cut = pieces(text, count)
    assert "".join(cut) == text
    assert len(cut) <= count


def test_an_entry_may_think_first_and_report_every_kind_of_usage() -> None:
    usage = {"cache_read_tokens": 1, "cache_write_tokens": 2, "cache_write_1h_tokens": 3, "web_searches": 4}
    entry = {"reply": "so", "thinking": "about {{prompt}}", "usage": usage}
    planned = Script(parse_script({"replies": [entry]})).answer(ask("this"))
    assert (planned.thinking, planned.text) == ("about this", "so")
    assert planned.usage.output_tokens == 3  # what it thought is paid like what it says
    assert {name: getattr(planned.usage, name) for name in usage} == usage
    with pytest.raises(Invalid, match="replies"):
        parse_script({"replies": [{"reply": "so", "thinking": "{{ a b }}"}]})
