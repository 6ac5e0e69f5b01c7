"""An agent's model may be a profile: what it brings, what outranks it, and what it never lets a composition say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ksi_mcp import yamlio
from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home
from ksi_mcp.errors import Invalid
from ksi_mcp.permissions import OPERATOR, fresh_context

PROFILES = {
    "mine": {
        "provider": "anthropic", "model": "m-1", "effort": "high", "max_tokens": 500, "timeout_s": 90,
        "fallback": ["local", "scripted:m-3", "m-4"],
    },
    "local": {"base_url": "http://localhost:9/v1", "model": "qwen3:8b", "fallback": ["mine-too"]},
    "mine-too": {"provider": "anthropic", "model": "m-1", "effort": "low"},
    "open": {"model": "m-5", "fallback": ["m-6", "scripted:m-5"]},
    "broken": {"model": "m-7", "fallback": ["nobody"]},
}  # fmt: skip
LOCAL = "openai_compatible@local"


class Opened:
    def __init__(self, app: App) -> None:
        self.app = app

    async def call(self, tool: str, **args: Any) -> dict[str, Any]:
        return (await self.app.toolbox.call(fresh_context(OPERATOR), tool, args)).data

    async def spawn(self, **args: Any) -> tuple[str, str, tuple[str, ...], Any]:
        args = args if "composition" in args else {"prompt": "You help.", **args}
        made = await self.call("agent_spawn", **args)
        return await self.seen(made["agent"])

    async def seen(self, agent: str) -> tuple[str, str, tuple[str, ...], Any]:
        services = self.app.services
        found = await services.journal.read(lambda tx: services.roster.get(tx, agent))
        return found.provider, found.model, found.settings.fallback, found.settings


@pytest.fixture
async def opened(tmp_path: Path) -> Any:
    (tmp_path / "profiles.yaml").write_text(yamlio.dump(PROFILES))
    config = Config(provider="scripted", model="m")
    async with App(Home(root=tmp_path), AppOptions(worker="none", environ={}), config=config) as app:
        yield Opened(app)


async def test_a_profile_brings_its_provider_model_settings_and_what_stands_in(opened: Opened) -> None:
    provider, model, fallback, settings = await opened.spawn(model="mine")
    assert (provider, model) == ("anthropic", "m-1")
    assert fallback == (f"{LOCAL}:qwen3:8b", "scripted:m-3", "anthropic:m-4")
    assert (settings.effort, settings.max_tokens, settings.timeout_s) == ("high", 500, 90)


async def test_a_profile_without_a_provider_is_at_the_one_the_agent_has_anyway(opened: Opened) -> None:
    assert (await opened.spawn(model="open"))[:3] == ("scripted", "m-5", ("scripted:m-6",))
    asked = await opened.spawn(model="open", provider="anthropic")
    assert asked[:3] == ("anthropic", "m-5", ("anthropic:m-6", "scripted:m-5"))


async def test_a_provider_named_beside_a_profile_outranks_it_and_nothing_is_asked_elsewhere(opened: Opened) -> None:
    assert (await opened.spawn(model="mine", provider="scripted"))[:3] == ("scripted", "m-1", ("scripted:m-4",))
    assert (await opened.spawn(model="local", provider="openai_compatible"))[0] == LOCAL


async def test_what_a_composition_says_itself_outranks_the_profile(opened: Opened, tmp_path: Path) -> None:
    document = {
        "name": "analyst", "type": "agent", "prompt": "You look.", "model": "mine", "provider": "anthropic",
        "effort": "low", "max_tokens": 100, "fallback": ["mine-too", "local", "m-9"],
        "base_url": "https://evil.example", "api_key_env": "CANARY_KEY",
        "settings": {"base_url": "https://evil.example", "api_key": "canary", "timeout_s": 5},
    }  # fmt: skip
    (tmp_path / "compositions").mkdir(exist_ok=True)
    (tmp_path / "compositions" / "analyst.yaml").write_text(yamlio.dump(document))
    provider, model, fallback, settings = await opened.spawn(composition="analyst")
    assert (provider, model) == ("anthropic", "m-1")
    assert fallback == (f"{LOCAL}:qwen3:8b", "m-9")
    assert (settings.effort, settings.max_tokens, settings.timeout_s) == ("low", 100, 5)
    assert "evil" not in str(settings) + str(opened.app.services.registry.profiles.endpoints())
    registry = opened.app.services.registry
    built: Any = await registry.get("anthropic")
    assert "evil" not in str(vars(built))
    # Who calls with another profile gets that one's provider, not the composition's.
    assert (await opened.spawn(composition="analyst", name="b", model="local"))[:2] == (LOCAL, "qwen3:8b")


async def test_a_model_that_is_no_profile_is_as_it_always_was(opened: Opened) -> None:
    assert (await opened.spawn(model="claude-opus-5-5"))[:3] == ("scripted", "claude-opus-5-5", ())
    assert (await opened.spawn(name="b"))[:2] == ("scripted", "m")
    assert (await opened.spawn(name="c", provider="claude_cli"))[:2] == ("claude_cli", "m")
    assert (await opened.spawn(name="d", model="qwen3:8b", provider=LOCAL))[:2] == (LOCAL, "qwen3:8b")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"model": "broken"}, "unknown fallback 'nobody'"),
        ({"model": "m", "provider": "openia"}, "unknown provider 'openia'"),
        ({"model": "m", "provider": "openai_compatible@mine"}, "unknown provider"),
    ],
)
async def test_a_profile_that_cannot_be_used_makes_no_agent(opened: Opened, args: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        await opened.spawn(**args)
    assert (await opened.call("agent_list"))["agents"] == []


async def test_an_agent_is_put_on_a_profile_with_all_that_belongs_to_it(opened: Opened) -> None:
    made = await opened.call("agent_spawn", prompt="You help.", model="mine")
    for args, expected in (
        ({"model": "open"}, ("anthropic", "m-5", ("anthropic:m-6", "scripted:m-5"))),
        ({"model": "mine-too"}, ("anthropic", "m-1", ())),
        ({"model": "local"}, (LOCAL, "qwen3:8b", ("anthropic:m-1",))),
        ({"model": "mine", "provider": "scripted"}, ("scripted", "m-1", ("scripted:m-4",))),
        ({"model": "plain"}, ("scripted", "plain", ("scripted:m-4",))),
    ):
        await opened.call("agent_update", agent=made["agent"], **args)
        assert (await opened.seen(made["agent"]))[:3] == expected
    with pytest.raises(Invalid, match="unknown fallback 'nobody'"):
        await opened.call("agent_update", agent=made["agent"], model="broken")
    assert (await opened.seen(made["agent"]))[1] == "plain"


async def test_where_nobody_answers_whoever_spawns_is_told(tmp_path: Path) -> None:
    async with App(Home(root=tmp_path), AppOptions(worker="none", environ={}), config=Config()) as app:
        made = await Opened(app).call("agent_spawn", prompt="You help.")
        assert (made["provider"], made["model"]) == ("external", "host")
        assert "completion_answer" in made["note"]
        asked = await Opened(app).call("agent_spawn", name="b", prompt="You help.", provider="scripted")
        assert asked.get("note") is None
