"""What a model thought before it called tools goes back to it, also through another worker; nobody else gets it."""

from __future__ import annotations

from typing import Any

from ksi_mcp.providers.base import Request, Thinking
from ksi_mcp.providers.script import Planned, Script, parse_script
from ksi_mcp.web.sim import SimServer

REPLIES = [
    {
        "match": {"round": 1, "turn": 1}, "reply": "looking", "thinking": "who might it be?",
        "tool_calls": [{"name": "agent_list"}],
    },
    {"match": {"round": 2, "turn": 1}, "reply": "it is {{results[0].agents[0].name}}"},
    {"match": {"turn": 2}, "reply": "still {{agent}}"},
]  # fmt: skip


class Held(Script):
    """Remembers what it was shown."""

    def __init__(self, replies: list[dict[str, Any]]) -> None:
        super().__init__(parse_script({"replies": replies}))
        self.requests: list[Request] = []

    def answer(self, request: Request) -> Planned:
        self.requests.append(request)
        return super().answer(request)

    def thoughts(self) -> list[list[Any]]:
        return [
            [block.data["thinking"] for m in request.messages for block in m.blocks if isinstance(block, Thinking)]
            for request in self.requests
        ]


async def test_thinking_is_given_back_within_its_turn_and_to_its_model_only(open_house) -> None:
    held = Held(REPLIES)
    async with (
        SimServer(held) as sim,
        open_house(provider="anthropic", model="claude-opus-5-5", anthropic={"base_url": sim.url}) as house,
    ):
        await house.call("agent_spawn", name="ann", prompt="You look.", capabilities=["base"])
        assert (await house.ask("ann", "who is there?"))["text"] == "it is ann"
        assert held.thoughts() == [[], ["who might it be?"]]  # its signature was checked on the way
        await house.call("agent_update", agent="ann", model="claude-haiku-5-5")
        assert (await house.ask("ann", "and now?"))["text"] == "still ann"
        assert "who might it be?" not in held.thoughts()[2]


async def test_thinking_survives_a_worker(open_house) -> None:
    held = Held([REPLIES[0], {**REPLIES[1], "latency_s": 60, "times": 1}, REPLIES[1]])
    async with SimServer(held) as sim:
        config: dict[str, Any] = {
            "provider": "anthropic", "model": "claude-opus-5-5", "anthropic": {"base_url": sim.url},
        }  # fmt: skip
        async with open_house(**config) as house:
            await house.call("agent_spawn", name="ann", prompt="You look.", capabilities=["base"])
            turn = (await house.call("agent_send", agent="ann", message="who is there?"))["turn"]
            await house.until(lambda: len(held.requests) == 2)
        async with open_house(**config) as house:
            (done,) = (await house.call("agent_wait", turns=[turn], timeout_s=20))["turns"]
            assert (done["text"], done["attempts"]) == ("it is ann", 2)
        assert held.thoughts() == [[], ["who might it be?"], ["who might it be?"]]
