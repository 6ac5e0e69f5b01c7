"""Results as people read them, and waits that go on."""

from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.cli.twin import waits
from ksi_mcp.cli.twin.records import census_line, show
from ksi_mcp.cli.twin.tables import fit
from ksi_mcp.tools.catalog import ALL_TOOLS

TOOLS = {tool.name: tool for tool in ALL_TOOLS}
PENDING = {"asked": 2, "ok": 1, "failed": 0, "cancelled": 0, "timed_out": 0, "pending": 1}


def shown(data: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    show(data)
    return capsys.readouterr()


def test_one_record_is_aligned_and_what_to_do_next_is_no_part_of_it(capsys) -> None:
    data = {
        "turn": "t_1", "spent_usd": 0.0125, "limit_usd": 2, "tokens": 12345, "at": "2026-11-21T15:19:28.123Z",
        "done": True, "tags": ["a", "b"], "empty": [], "text": "two\nlines", "census": PENDING, "next": "agent_wait",
    }  # fmt: skip
    out, err = shown(data, capsys)
    assert out == (
        "turn       t_1\nspent_usd  $0.0125\nlimit_usd  $2.00\ntokens     12,345\nat         2026-11-21 15:19:28Z\n"
        "done       yes\ntags       a, b\nempty: none\ntext:\n  two\n  lines\ncensus: 1 of 2 ok, 1 pending\n"
    )
    assert err == "next: `ksi-mcp agent wait`\n"


def test_records_are_a_table_and_long_ones_one_after_the_other(capsys) -> None:
    out, _ = shown({"agents": [{"name": "ada", "turns": 1}, {"name": "b", "status": "idle"}]}, capsys)
    assert out == "name  turns  status\nada   1\nb            idle\n"
    out, _ = shown({"total": 2, "turns": [{"turn": "t_1", "text": "a\nb"}, {"turn": "t_2", "text": "c"}]}, capsys)
    assert out == "total  2\nturns:\n  turn  t_1\n  text:\n    a\n    b\n\n  turn  t_2\n  text  c\n"
    assert shown({"mermaid": "flowchart LR\n  a --> b\n"}, capsys)[0] == "flowchart LR\n  a --> b\n"
    assert shown({}, capsys) == ("", "")


def test_events_are_a_line_each_without_what_says_nothing(capsys) -> None:
    event = {
        "event_id": 7, "event": "routing:rule_added", "source": "system", "at": "2026-11-21T15:19:28.123Z",
        "data": {"rule": {"target": "agent:a_1", "mapping": None}, "reason": None}, "depth": 1,
    }  # fmt: skip
    out, _ = shown({"events": [event, {**event, "event_id": 6, "data": {"text": "a\nb" * 100}}]}, capsys)
    first, second = out.splitlines()
    assert first == (
        "2026-11-21 15:19:28Z       7  routing:rule_added          system                "
        '{"rule": {"target": "agent:a_1"}}'
    )
    assert second.count("a\\nb") == 100


def test_a_census_says_what_came_and_what_did_not() -> None:
    assert census_line(PENDING) == "1 of 2 ok, 1 pending"
    assert census_line({"asked": 0, "ok": 0}) == "0 of 0 ok"
    assert census_line({"planned": 3, "passed": 1, "failed": 1, "not_run": 1}) == "1 of 3 passed, 1 failed, 1 not run"
    assert census_line({"running": 2}) == "2 running"


def test_a_table_gives_up_columns_before_it_cuts_anything() -> None:
    head = ["id", "status", "text", "made_by"]
    rows = [["t_1", "done", "a b c " * 10, "operator"], ["t_2", "done", "x", "operator"]]
    whole = fit(head, rows, 120)
    assert whole is not None
    assert (whole.shown, whole.wrapped, whole.same) == ((0, 1, 2, 3), None, ())
    wrapped = fit(head, rows, 60)
    assert wrapped is not None
    assert (wrapped.shown, wrapped.wrapped) == ((0, 1, 2, 3), 2)
    small = fit(head, rows, 45, keep={"status"})
    assert small is not None
    assert (small.shown, small.same, small.dropped) == ((0, 1, 2), (3,), ())
    assert fit(head, rows, 20) is None


@pytest.mark.parametrize(
    ("tool", "data", "took_s", "goes_on"),
    [
        ("agent_wait", {"census": PENDING}, 55, ("agent_wait", {"turns": ["t_1"]})),
        ("agent_wait", {"census": PENDING}, 3, None),  # it waits for somebody: another call would not wait either
        ("agent_wait", {"census": PENDING | {"pending": 0}}, 55, None),
        ("agent_send", {"turn": "t_1", "status": "running"}, 55, ("agent_wait", {"turns": ["t_1"], "timeout_s": 55.0})),
        ("agent_send", {"turn": "t_1", "status": "done"}, 55, None),
        ("agent_send", {"census": PENDING, "turns": [{"turn": "t_1"}]}, 55,
         ("agent_wait", {"turns": ["t_1"], "timeout_s": 55.0})),
        ("event_wait", {"complete": False}, 55, ("event_wait", {"turns": ["t_1"]})),
        ("event_wait", {"complete": True}, 55, None),
        ("composition_evaluate", {"evaluation": "e_1", "census": {"planned": 2, "not_run": 1}}, 55,
         ("composition_evaluate", {"evaluation": "e_1", "wait_s": 55.0})),
        ("composition_evaluate", {"evaluation": "e_1", "census": {"planned": 2, "passed": 2}}, 55, None),
    ],
)  # fmt: skip
def test_a_wait_goes_on_while_something_can_still_come(tool: str, data: Any, took_s: float, goes_on: Any) -> None:
    assert waits.next_call(TOOLS[tool], {"turns": ["t_1"]}, data, took_s=took_s) == goes_on


def test_what_several_calls_came_to_has_the_shape_of_one() -> None:
    first = {"turn": "t_1", "status": "running", "agent": "a_1"}
    last = {"census": PENDING, "turns": [{"turn": "t_1", "status": "done", "text": "hi"}]}
    assert waits.joined(TOOLS["agent_send"], first, last) == {
        "turn": "t_1", "status": "done", "agent": "a_1", "text": "hi",
    }  # fmt: skip
    assert waits.joined(TOOLS["agent_wait"], first, last) == last


@pytest.mark.parametrize(
    ("tool", "args", "data", "says"),
    [
        ("agent_wait", {"turns": ["t_1", "t_2"], "agents": ["a b"]}, None, "agent wait t_1 t_2 --agents 'a b'"),
        ("agent_send", {"agent": "ada"}, None, "agent wait --agents ada"),
        ("agent_send", {"agent": "ada"}, {"turn": "t_1"}, "agent wait t_1"),
        ("event_wait", {"names": ["task:*"]}, None, "event wait 'task:*'"),
        ("composition_evaluate", {}, {"evaluation": "e_1"}, "composition evaluate --evaluation e_1"),
        ("composition_evaluate", {"name": "x"}, None, "the same command waits again"),
        ("agent_spawn", {}, None, "either whole or not there"),
    ],
)
def test_who_breaks_off_is_told_the_command_that_goes_on(tool: str, args: Any, data: Any, says: str) -> None:
    assert says in waits.after_break(TOOLS[tool], args, data)
