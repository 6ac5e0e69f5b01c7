from __future__ import annotations

import pytest
from mcp.types import ElicitResult, InputRequiredResult

from ksi_mcp.tools.catalog import ALL_TOOLS

TERMINATE = {"event": "agent:terminate", "data": {"agent": "victim"}}


class User:
    """Answers questions, and remembers them."""

    def __init__(self, action: str, content: dict | None = None) -> None:
        self.answer = ElicitResult(action=action, content=content)
        self.asked: list[str] = []

    async def __call__(self, context, params):
        self.asked.append(params.message)
        return self.answer


async def alive(client) -> list[str]:
    return [each["name"] for each in (await client.call_tool("agent_list", {})).structured_content["agents"]]


@pytest.mark.parametrize("content", [{"ok": True}, {}])
async def test_a_destructive_command_runs_once_the_user_agrees(serve, content):
    user = User("accept", content)
    async with serve(elicitation_callback=user) as (_, client):
        await client.call_tool("agent_spawn", {"prompt": "x", "name": "victim"})
        result = await client.call_tool("event_emit", TERMINATE)
        assert not result.is_error
        assert result.structured_content["command"] == "agent_terminate"
        assert await alive(client) == []
    assert len(user.asked) == 1
    assert "agent:terminate" in user.asked[0]
    assert "victim" in user.asked[0]


async def test_a_long_argument_hides_no_other(serve):
    user = User("decline")
    inner = {"event": "agent:terminate", "data": {"reason": "x" * 5_000, "agent": "victim"}}
    async with serve(elicitation_callback=user) as (_, client):
        for call in (inner, {"event": "event:emit", "data": inner}):
            await client.call_tool("event_emit", call)
    assert len(user.asked) == 2
    for asked in user.asked:
        assert "'agent': 'victim'" in asked
        assert len(asked) < 500


@pytest.mark.parametrize(
    ("action", "content"), [("decline", None), ("cancel", None), ("accept", {"ok": False}), ("accept", {"ok": "yes"})]
)
async def test_a_destructive_command_does_nothing_unless_the_user_agrees(serve, action, content):
    user = User(action, content)
    async with serve(elicitation_callback=user) as (_, client):
        await client.call_tool("agent_spawn", {"prompt": "x", "name": "victim"})
        result = await client.call_tool("event_emit", TERMINATE)
        assert result.is_error
        assert result.content[0].text == "the user did not confirm agent:terminate; nothing was changed"
        assert await alive(client) == ["victim"]


@pytest.mark.parametrize(
    "hidden",
    [
        TERMINATE,
        TERMINATE | {"delay_s": 60},
        {"event": "event:emit", "data": TERMINATE},
        {"event": "event:emit", "data": {"event": "event:emit", "data": TERMINATE}},
    ],
)
async def test_a_client_that_cannot_ask_is_told_which_tool_to_call(serve, hidden):
    async with serve() as (_, client):
        await client.call_tool("agent_spawn", {"prompt": "x", "name": "victim"})
        result = await client.call_tool("event_emit", hidden)
        assert result.is_error
        assert result.content[0].text.endswith("call agent_terminate itself")
        assert await alive(client) == ["victim"]
        assert not (await client.call_tool("agent_terminate", {"agent": "victim"})).is_error


async def test_every_destructive_command_is_guarded_under_all_its_names(serve):
    async with serve() as (app, client):
        for declared in ALL_TOOLS:
            for command in (declared.command, *declared.commands):
                if declared.effects == "destroys":
                    result = await client.call_tool("event_emit", {"event": command, "data": {}})
                    assert f"call {declared.name} itself" in result.content[0].text
        assert app.toolbox.command("agent:terminate") is not None


async def test_commands_that_destroy_nothing_ask_nobody(serve):
    user = User("decline")
    async with serve(elicitation_callback=user) as (_, client):
        result = await client.call_tool("event_emit", {"event": "agent:spawn", "data": {"prompt": "x", "name": "new"}})
        assert not result.is_error
        assert await alive(client) == ["new"]
    assert user.asked == []


@pytest.mark.parametrize("era", ["auto"], indirect=True)
async def test_an_answer_counts_for_the_very_call_it_was_asked_for(serve):
    user = User("accept")
    async with serve(elicitation_callback=user) as (_, client):
        for name in ("victim", "bystander"):
            await client.call_tool("agent_spawn", {"prompt": "x", "name": name})
        question = await client.session.call_tool("event_emit", TERMINATE, allow_input_required=True)
        assert isinstance(question, InputRequiredResult)
        other = {"event": "agent:terminate", "data": {"agent": "bystander"}}
        with pytest.raises(Exception, match="requestState"):
            await client.session.call_tool(
                "event_emit",
                other,
                input_responses={"confirm": ElicitResult(action="accept")},
                request_state=question.request_state,
                allow_input_required=True,
            )
        unasked = await client.session.call_tool(
            "event_emit",
            other,
            input_responses={"confirm": ElicitResult(action="accept")},
            allow_input_required=True,
        )
        assert isinstance(unasked, InputRequiredResult)
        assert sorted(await alive(client)) == ["bystander", "victim"]
