"""The semantic cache in whole turns: off, in shadow, and serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.provider_config import SemanticConfig

ALIKE = "def embed(texts):\n    return [[1.0, 0.0] for _ in texts]\n\ndef fails(texts):\n    raise OSError('away')\n"
SCRIPT = {"default": {"reply": "{{prompt}}!", "usage": {"input_tokens": 10, "output_tokens": 10}}}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "embedders"
    folder.mkdir()
    name = f"alike_{tmp_path.name}".replace("-", "_")
    (folder / f"{name}.py").write_text(ALIKE)
    monkeypatch.syspath_prepend(str(folder))
    return name


async def agents(house: Any, *names: str, **settings: Any) -> None:
    document = {"name": "clerk", "type": "agent", "prompt": "You help.", "model": "m", "capabilities": [], **settings}
    await house.call("composition_create", document=document)
    for name in names:
        await house.call("agent_spawn", composition="clerk", name=name)


def bought(house: Any) -> int:
    return int(house.rows("SELECT COUNT(*) FROM provider_call WHERE reused_from IS NULL")[0][0])


async def test_without_an_embedder_nothing_is_looked_up(open_house) -> None:
    async with open_house(SCRIPT) as house:
        await agents(house, "a", "b", cache="semantic")
        for name, prompt in [("a", "List the ports."), ("b", "Please list the ports.")]:
            assert "reused" not in await house.ask(name, prompt)
        assert bought(house) == 2
        assert house.rows("SELECT * FROM semantic_entry") == house.rows("SELECT * FROM semantic_look") == []


async def test_in_shadow_mode_the_model_is_asked_all_the_same_and_the_report_counts(open_house, module) -> None:
    config = SemanticConfig(embedder=f"{module}:embed")
    async with open_house(SCRIPT, semantic_cache=config) as house:
        await agents(house, "a", "b", "c", cache="semantic")
        for name, prompt in [("a", "List the ports."), ("b", "Please list the ports."), ("c", "List no ports.")]:
            assert (await house.ask(name, prompt))["text"] == f"{prompt}!"
        assert bought(house) == 3
        report = await house.call("completion_cache_report")
        assert (report["on"], report["mode"], report["entries"]) == (True, "shadow", 3)
        assert report["would_serve"] == {"looks": 1, "same_answer": 0, "other_answer": 1}
        assert report["false_hit_rate"] == 1.0
        assert report["guarded"]["looks"] == 1
        house.books()


async def test_served_is_what_asks_the_same_and_it_says_so(open_house, module) -> None:
    config = SemanticConfig(embedder=f"{module}:embed", mode="serve")
    async with open_house(SCRIPT, semantic_cache=config) as house:
        await agents(house, "a", "b", "c", cache="semantic")
        assert (await house.ask("a", "Keep it for 7 days."))["text"] == "Keep it for 7 days.!"
        served = await house.ask("b", "Could you keep it for seven days, please?")
        assert (served["status"], served["text"], served["reused"]) == ("done", "Keep it for 7 days.!", True)
        assert (await house.call("completion_status", turn=served["turn"]))["similarity"] == 1.0
        assert served["cost_usd"] == 0
        near_miss = await house.ask("c", "Keep it for 70 days.")
        assert (near_miss["text"], near_miss.get("reused")) == ("Keep it for 70 days.!", None)
        assert house.rows("SELECT call_id, reused_from, similarity FROM provider_call") == [
            (1, None, None), (2, 1, 1.0), (3, None, None),
        ]  # fmt: skip
        house.books()


async def test_a_conversation_and_tools_are_never_looked_up(open_house, module) -> None:
    config = SemanticConfig(embedder=f"{module}:embed", mode="serve")
    async with open_house(SCRIPT, semantic_cache=config) as house:
        await agents(house, "a", cache="semantic")
        await house.ask("a", "List the ports.")
        assert "reused" not in await house.ask("a", "Please list the ports.")  # by now there is a conversation
        document = {
            "name": "able", "type": "agent", "prompt": "You help.", "model": "m", "capabilities": ["messaging"],
            "cache": "semantic",
        }  # fmt: skip
        await house.call("composition_create", document=document)
        await house.call("agent_spawn", composition="able", name="b")
        assert "reused" not in await house.ask("b", "Please list the ports.")
        assert bought(house) == 3


async def test_a_run_does_not_hear_what_another_run_was_answered(open_house, module) -> None:
    config = SemanticConfig(embedder=f"{module}:embed", mode="serve")
    async with open_house(SCRIPT, semantic_cache=config) as house:
        one = {"prompt": "You help.", "model": "m", "capabilities": [], "cache": "semantic"}
        pattern = {
            "name": "pair", "type": "orchestration", "agents": {"one": one, "two": one},
            "orchestration_logic": {"strategy": "Ask."},
        }  # fmt: skip
        await house.call("composition_create", document=pattern)
        runs = [await house.call("orchestration_start", pattern="pair") for _ in range(2)]
        first, second = ([agent["agent"] for agent in run["agents"]] for run in runs)
        assert "reused" not in await house.ask(first[0], "List the ports.")
        assert "reused" not in await house.ask(second[0], "Please list the ports.")
        assert (await house.ask(first[1], "Could you list the ports?"))["reused"]
        assert bought(house) == 2


async def test_an_embedder_that_is_away_costs_no_turn(open_house, module) -> None:
    config = SemanticConfig(embedder=f"{module}:fails", mode="serve")
    async with open_house(SCRIPT, semantic_cache=config) as house:
        await agents(house, "a", "b", cache="semantic")
        for name, prompt in [("a", "List the ports."), ("b", "Please list the ports.")]:
            assert (await house.ask(name, prompt))["status"] == "done"
        assert bought(house) == 2
