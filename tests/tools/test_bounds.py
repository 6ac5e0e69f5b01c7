"""What cannot be shown or ended again is not taken in."""

from __future__ import annotations

import stat
from typing import Any

import pytest

from ksi_mcp.errors import Invalid, KsiError


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("tool", "args", "look"),
    [
        ("event_emit", {"event": "note:x", "data": nested(300)}, "event_query"),
        (
            "routing_add_rule",
            {"source_pattern": "note:x", "target": "note:y", "metadata": nested(300)},
            "routing_query_rules",
        ),
        (
            "composition_track_decision",
            {"pattern": "p", "decision": "d", "context": nested(300)},
            "decision_query",
        ),
    ],
)
async def test_what_is_nested_too_deeply_to_be_shown_is_refused(
    open_house, tool: str, args: dict[str, Any], look: str
) -> None:
    async with open_house() as house:
        with pytest.raises(Invalid, match="nested deeper than 64 levels"):
            await house.call(tool, **args)
        await house.call(look)


async def test_the_deepest_that_is_taken_is_shown_again(open_house) -> None:
    async with open_house() as house:
        await house.call("event_emit", event="note:x", data=nested(63))
        assert (await house.call("event_query", names=["note:x"]))["events"][0]["data"] == nested(63)


@pytest.mark.parametrize("number", [10**4000, float("inf"), float("nan")])
async def test_a_rule_cannot_be_made_too_large_to_be_ended(open_house, number: float) -> None:
    async with open_house() as house:
        mapping = {f"k{index}": number for index in range(15)}
        with pytest.raises(Invalid, match="mapping"):
            await house.call("routing_add_rule", source_pattern="note:x", target="note:y", mapping=mapping)


@pytest.mark.parametrize("cursor", ["²", "9" * 5_000, "-1", "x"])
async def test_a_cursor_of_runs_that_is_none_is_refused(open_house, cursor: str) -> None:
    async with open_house() as house:
        with pytest.raises(Invalid, match="is not one of ours"):
            await house.call("orchestration_list", cursor=cursor)


@pytest.mark.parametrize(
    "ending", [{"score": float("nan")}, {"metrics": {"x": float("inf")}}, {"metrics": nested(300)}]
)
async def test_a_run_is_not_ended_with_figures_that_are_none(open_house, ending: dict[str, Any]) -> None:
    async with open_house() as house:
        await house.run("o_1")
        with pytest.raises(KsiError, match=r"score|metrics"):
            await house.call("orchestration_complete", orchestration="o_1", **ending)
        assert house.rows("SELECT state FROM orchestration") == [("running",)]


@pytest.mark.parametrize("messages", ["abc", 1.5, True, -1])
async def test_settings_that_no_turn_could_be_made_with_are_refused(open_house, messages: object) -> None:
    async with open_house() as house:
        document = {"name": "odd", "type": "agent", "prompt": "x", "settings": {"context_messages": messages}}
        with pytest.raises(Invalid, match="context_messages"):
            await house.call("composition_create", document=document)


async def test_a_time_limit_that_is_written_as_text_is_a_number(open_house) -> None:
    async with open_house() as house:
        document = {"name": "slow", "type": "agent", "prompt": "x", "timeout_s": "30"}
        await house.call("composition_create", document=document)
        await house.call("agent_spawn", composition="slow", name="a")
        assert (await house.ask("a"))["status"] == "done"
        house.books()


async def test_waiting_says_when_older_events_are_left_out(open_house) -> None:
    async with open_house() as house:
        for number in range(201):
            await house.call("event_emit", event="note:x", data={"n": number})
        waited = await house.call("event_wait", names=["note:x"], since=0, timeout_s=0)
        assert (len(waited["events"]), waited["complete"]) == (200, True)
        assert "older events" in waited["next"]


async def test_the_database_is_private_even_in_a_folder_that_others_can_enter(open_house, tmp_path) -> None:
    tmp_path.chmod(0o755)
    async with open_house():
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("ksi.db*")}
        assert modes
        assert set(modes.values()) == {0o600}


async def test_a_delayed_wait_does_not_hold_up_what_is_due_behind_it(
    open_house, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ksi_mcp.pumps._FIRE_S", 0.05)
    async with open_house() as house:
        wait = {"names": ["note:never"], "timeout_s": 55}
        await house.call("event_emit", event="event:wait", data=wait, delay_s=0.001)
        await house.call("event_emit", event="note:x", data={"x": 1}, delay_s=0.002)
        await house.until(lambda: house.events("note:x") == [{"x": 1}])
        assert "waited for more than" in house.events("system:delayed_failed")[0]["reason"]


async def test_a_position_in_a_filter_that_no_list_has_fits_nothing(open_house) -> None:
    async with open_house() as house:
        document = {"name": "odd", "type": "component", "content": "x", "notes": [1]}
        await house.call("composition_create", document=document)
        found = await house.call("composition_discover", metadata_filter={"notes." + "9" * 5_000: 1})
        assert found["compositions"] == []


async def test_a_reason_for_a_change_keeps_what_was_noted_with_the_rule(open_house) -> None:
    async with open_house() as house:
        made = await house.call(
            "routing_add_rule", source_pattern="note:x", target="note:y", metadata={"owner": "ann"}, reason="first"
        )
        rule = {"rule_id": made["rule_id"], "updates": {"priority": 7}}
        changed = await house.call("routing_modify_rule", **rule, reason="second")
        assert changed["metadata"] == {"owner": "ann", "reason": "second"}


async def test_an_error_that_quotes_half_a_character_can_be_sent(open_house) -> None:
    async with open_house() as house:
        with pytest.raises(Invalid) as refused:
            await house.call("agent_spawn", prompt="x", capabilities=["\ud800"])
        assert refused.value.text().encode()
