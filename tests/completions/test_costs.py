"""What an answer is booked at when what its provider says of it cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.budgets.prices import Prices
from ksi_mcp.completions.model import Loaded
from ksi_mcp.completions.preparing import Preparing
from ksi_mcp.config import Config
from ksi_mcp.providers.base import Answer, Usage

PRICE = {"m": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}}


def answer(usage: Usage, **more: Any) -> Answer:
    return Answer(text="42", model="m", stop_reason="end_turn", usage=usage, **more)


@pytest.fixture
def prepared(open_house):
    """A turn as it was let out: its cost at worst, and what says what it did cost."""

    async def made(provider: str = "scripted") -> tuple[Loaded, Any, Preparing]:
        async with open_house(prices=PRICE) as house:
            seen: list[Loaded] = []
            preparing = Preparing(Config(prices=PRICE), house.app.agent_tools, Prices(PRICE))
            original = house.app.worker._units._load
            house.app.worker._units._load = lambda tx, turn: seen.append(original(tx, turn)) or seen[-1]
            await house.spawn("ann", provider=provider)
            await house.ask("ann", "6 x 7?")
            return seen[0], preparing.prepare(seen[0]).wanted.worst, preparing

    return made


@pytest.mark.parametrize(
    "told",
    [
        answer(Usage(input_tokens=10**9, output_tokens=1)),
        answer(Usage(input_tokens=1, output_tokens=10**9)),
        answer(Usage(output_tokens=10, estimated=True)),
        answer(Usage(input_tokens=1), cost_usd_micros=-500_000),
        answer(Usage(input_tokens=1), cost_usd_micros=10**23),
        answer(Usage(input_tokens=1), cost_usd_micros=0.5),  # type: ignore[arg-type]
        answer(Usage(input_tokens=1), cost_usd_micros=True),
    ],
)
async def test_what_cannot_be_is_booked_as_all_that_was_set_aside(prepared, told) -> None:
    item, worst, preparing = await prepared()
    assert preparing.cost(item, told, worst=worst) == worst


@pytest.mark.parametrize(
    ("told", "usd_micros"),
    [
        (answer(Usage(input_tokens=10, output_tokens=5)), 20),
        (answer(Usage(input_tokens=10, output_tokens=5), cost_usd_micros=7), 7),
        (answer(Usage(input_tokens=10, output_tokens=5), cost_usd_micros=0), 0),
        (answer(Usage(input_tokens=10, output_tokens=5, estimated=True)), 20),
    ],
)
async def test_what_can_be_is_believed(prepared, told, usd_micros) -> None:
    item, worst, preparing = await prepared()
    cost = preparing.cost(item, told, worst=worst)
    assert (cost.usd_micros, cost.tokens) == (usd_micros, 15)


async def test_a_model_without_a_price_lets_the_next_of_its_chain_be_asked(open_house) -> None:
    async with open_house(prices=PRICE, provider="anthropic") as house:
        document = {
            "name": "helper", "type": "agent", "prompt": "You help.", "provider": "anthropic",
            "model": "nobody-knows-1", "fallback": ["scripted:m"],
        }  # fmt: skip
        await house.call("composition_create", document=document)
        await house.call("agent_spawn", composition="helper", name="ann", budget={"usd": 1})
        turn = await house.ask("ann", "hello")
        assert (turn["status"], turn["text"], turn["substituted"]) == ("done", "[ann] hello", True)
        assert "no price is known" in turn["first_error"]
        house.books()
