from __future__ import annotations

import pytest
from mcp.types import ElicitResult

EXPECT = {"regex": "^[0-9]+$", "max_attempts": 1}


class User:
    """Answers questions, and remembers them."""

    def __init__(self, action: str, **content: object) -> None:
        self.answer = ElicitResult(action=action, content=content or None)
        self.asked: list[str] = []

    async def __call__(self, context, params):
        self.asked.append(params.message)
        return self.answer


async def parked(client) -> str:
    await client.call_tool("agent_spawn", {"prompt": "x", "name": "counter"})
    submit = {"event": "completion:submit", "data": {"agent": "counter", "prompt": "how many?", "expect": EXPECT}}
    return (await client.call_tool("event_emit", submit)).structured_content["result"]["turn"]


async def test_a_parked_question_is_put_to_the_user_of_whoever_waits(serve):
    user = User("accept", text="42")
    async with serve(worker="inside", elicitation_callback=user) as (_, client):
        turn = await parked(client)
        waited = await client.call_tool("agent_wait", {"turns": [turn]})
        (answered,) = waited.structured_content["turns"]
        assert (answered["status"], answered["text"], answered["answered_by"]) == ("done", "42", "operator")
    assert len(user.asked) == 1
    assert "Agent counter needs an answer" in user.asked[0]
    assert "nothing in it matches the regular expression" in user.asked[0]
    assert "how many?" in user.asked[0]  # the scripted reply echoes the prompt


@pytest.mark.parametrize("user", [User("decline"), User("cancel"), User("accept", text=" "), None])
async def test_a_question_that_is_not_answered_stays(serve, user):
    options = {} if user is None else {"elicitation_callback": user}
    async with serve(worker="inside", **options) as (_, client):
        turn = await parked(client)
        waited = await client.call_tool("agent_wait", {"turns": [turn]})
        assert waited.structured_content["turns"][0]["parked_on"] == "answer"
        assert "completion_answer" in waited.structured_content["next"]
        answer = await client.call_tool("completion_answer", {"turn": turn, "text": "7"})
        assert answer.structured_content["status"] == "done"


async def test_an_answer_that_does_not_fit_is_refused_with_the_reason_and_the_turn_still_waits(serve):
    user = User("accept", text="many")
    async with serve(worker="inside", elicitation_callback=user) as (_, client):
        turn = await parked(client)
        waited = await client.call_tool("agent_wait", {"turns": [turn]})
        assert waited.is_error
        assert "is not what turn" in waited.content[0].text
        answer = await client.call_tool("completion_answer", {"turn": turn, "text": "7"})
        assert not answer.is_error
