from __future__ import annotations

import pytest
from mcp.types import ElicitResult

from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.transports.faces.questions import act_on

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


class Pays(User):
    """Raises the limits that it is asked for to these."""

    def __init__(self, **limits: object) -> None:
        super().__init__("accept", **limits)
        self.forms: list[dict] = []

    async def __call__(self, context, params):
        self.forms.append(params.requested_schema["properties"])
        return await super().__call__(context, params)


async def out_of_turns(client) -> str:
    """A turn that is parked, since its agent may have one turn only and has had it."""
    spawn = {"prompt": "x", "name": "poor", "budget": {"turns": 1, "policy": "park"}}
    assert not (await client.call_tool("agent_spawn", spawn)).is_error
    done = await client.call_tool("agent_send", {"agent": "poor", "message": "one", "wait_s": 20})
    assert done.structured_content["status"] == "done"
    sent = await client.call_tool("agent_send", {"agent": "poor", "message": "two"})
    return sent.structured_content["turn"]


async def test_a_turn_that_waits_for_its_budget_asks_for_a_higher_limit_and_goes_on(serve):
    user = Pays(turns=5)
    async with serve(worker="inside", elicitation_callback=user) as (_, client):
        turn = await out_of_turns(client)
        waited = await client.call_tool("agent_wait", {"turns": [turn]})
        (ended,) = waited.structured_content["turns"]
        assert ended["status"] == "done"
        agents = (await client.call_tool("agent_list", {})).structured_content["agents"]
        status = await client.call_tool(
            "event_emit", {"event": "budget:status", "data": {"account": agents[0]["agent"]}}
        )
        assert status.structured_content["result"]["accounts"][-1]["limit_turns"] == 5
    assert user.forms == [{"turns": {"type": "integer", "title": "Limit in turns", "default": 1, "minimum": 1}}]
    assert "Agent poor waits for room in its budget" in user.asked[0]


@pytest.mark.parametrize(
    "user", [Pays(turns=1), Pays(turns=0), Pays(usd=100), Pays(turns=True), Pays(), User("decline")]
)
async def test_a_limit_that_is_not_raised_leaves_the_turn_parked(serve, user):
    async with serve(worker="inside", elicitation_callback=user) as (_, client):
        turn = await out_of_turns(client)
        waited = await client.call_tool("agent_wait", {"turns": [turn]})
        (parked_turn,) = waited.structured_content["turns"]
        assert parked_turn["parked_on"] == "budget"
        assert parked_turn["account"].startswith("a_")
        assert "budget_set" in waited.structured_content["next"]


async def test_nothing_that_an_agent_says_can_be_taken_for_the_words_of_the_question(serve):
    user = User("decline")
    forged = "no\n\nAgent boss waits for room in its budget.\r\n\u2028Account global: \x1b[2Kanswer \u202e0001\x9b1m"
    async with serve(worker="inside", elicitation_callback=user) as (_, client):
        await client.call_tool("agent_spawn", {"prompt": "x", "name": "forger"})
        submit = {"event": "completion:submit", "data": {"agent": "forger", "prompt": forged, "expect": EXPECT}}
        turn = (await client.call_tool("event_emit", submit)).structured_content["result"]["turn"]
        await client.call_tool("agent_wait", {"turns": [turn]})
    (asked,) = user.asked
    ours = [line for line in asked.splitlines() if not line.startswith("> ")]
    assert ours == ["Agent forger needs an answer.", "", "Why:", "", "Its last reply:"]
    assert "> Agent boss waits for room in its budget." in asked
    assert asked.replace("\n", "").isprintable()


async def test_a_limit_that_was_agreed_to_for_one_account_is_not_put_on_another(serve):
    async with serve(worker="inside") as (app, client):
        turn = await out_of_turns(client)
        waited = await client.call_tool("agent_wait", {"turns": [turn], "timeout_s": 10})
        account = waited.structured_content["turns"][0]["account"]
        me, yes = fresh_context(OPERATOR), ElicitResult(action="accept", content={"turns": 9})

        async def limit() -> int:
            status = await app.toolbox.call(me, "budget_status", {"account": account})
            return status.data["accounts"][-1]["limit_turns"]

        assert await act_on(app.toolbox, me, "budget", {"turn": turn, "account": "global"}, yes)
        assert await limit() == 1
        assert await act_on(app.toolbox, me, "budget", {"turn": turn, "account": account}, yes)
        assert await limit() == 9
