"""A conversation outlives its model: whoever is asked next is shown all of it."""

from __future__ import annotations

from typing import Any

from ksi_mcp.providers.base import Request
from ksi_mcp.providers.script import Planned, Script, parse_script
from ksi_mcp.web.sim import SimServer

TURNS = 10


class Listening(Script):
    """Answers with the number of the turn, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__(parse_script({"default": {"reply": "answer {{turn}} of {{model}}"}}))
        self.requests: list[Request] = []

    def answer(self, request: Request) -> Planned:
        self.requests.append(request)
        return super().answer(request)


def said(request: Request) -> list[tuple[str, str]]:
    return [(message.role, str(block)) for message in request.messages for block in message.blocks]


async def test_ten_turns_on_two_models_each_and_every_earlier_turn_reaches_the_next_model(open_house) -> None:
    listening = Listening()
    async with SimServer(listening) as sim:
        config: dict[str, Any] = {
            "anthropic": {"base_url": sim.url},
            "openai_compatible": {"base_url": f"{sim.url}/v1"},
            "prices": {"local-model": "free"},
        }
        async with open_house(**{"provider": "anthropic", "model": "claude-haiku-5-5", **config}) as house:
            for name, first, second in (
                ("ann", ("anthropic", "claude-haiku-5-5"), ("openai_compatible", "local-model")),
                ("bob", ("openai_compatible", "local-model"), ("anthropic", "claude-sonnet-5-5")),
            ):
                await house.call("agent_spawn", name=name, prompt=f"You are {name}.", provider=first[0], model=first[1])
                expected: list[tuple[str, str]] = []
                for number in range(1, TURNS + 1):
                    provider, model = first if number <= TURNS // 2 else second
                    if number == TURNS // 2 + 1:
                        await house.call("agent_update", agent=name, provider=provider, model=model)
                    turn = await house.ask(name, f"question {number} for {name}")
                    expected.append(("user", f"question {number} for {name}"))
                    shown = listening.requests[-1]
                    assert (shown.model, said(shown)) == (model, expected)
                    expected.append(("assistant", f"answer {number} of {model}"))
                    assert turn["text"] == f"answer {number} of {model}"
                newest = (await house.call("agent_history", agent=name, limit=2))["turns"]
                assert [each["prompt"] for each in newest] == [f"question {n} for {name}" for n in (TURNS - 1, TURNS)]
            house.books()
