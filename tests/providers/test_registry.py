from __future__ import annotations

import pytest

from ksi_mcp.clock import SystemClock
from ksi_mcp.errors import Conflict, Invalid, NotFound
from ksi_mcp.providers.base import Message, Request
from ksi_mcp.providers.registry import ProviderRegistry, ProviderSettings

ASK = Request(model="m", system="", messages=(Message(role="user", blocks=("hi",)),), agent="ann")


async def test_a_provider_is_built_once_and_the_default_needs_no_name() -> None:
    settings = ProviderSettings(default_provider="scripted", scripted_script={"default": {"reply": "ok"}})
    registry = ProviderRegistry(settings, SystemClock(), {})
    provider = await registry.get()
    assert provider is await registry.get("scripted")
    assert (await provider.complete(ASK, deadline_s=1)).text == "ok"
    assert (await registry.get("anthropic")).name == "anthropic"
    await registry.aclose()
    with pytest.raises(Conflict):
        await registry.get("scripted")


async def test_an_unknown_provider_is_told_which_ones_there_are() -> None:
    registry = ProviderRegistry(ProviderSettings(), SystemClock(), {})
    with pytest.raises(NotFound, match="unknown provider 'openia'") as caught:
        await registry.get("openia")
    assert "anthropic, scripted" in caught.value.text()


async def test_a_wrong_script_is_refused_when_the_provider_is_built() -> None:
    settings = ProviderSettings(scripted_script={"replies": [{}]})
    registry = ProviderRegistry(settings, SystemClock(), {})
    assert registry.available()["scripted"][0] is False
    with pytest.raises(Invalid, match="script"):
        await registry.get("scripted")


@pytest.mark.parametrize(
    ("settings", "environ", "usable", "said"),
    [
        (ProviderSettings(), {}, False, "set ANTHROPIC_API_KEY"),
        (ProviderSettings(), {"ANTHROPIC_API_KEY": "sk-ant-very-secret"}, True, "ANTHROPIC_API_KEY"),
        (ProviderSettings(anthropic_key_env="MY_KEY"), {"ANTHROPIC_API_KEY": "x"}, False, "MY_KEY"),
        (ProviderSettings(anthropic_base_url="http://127.0.0.1:1"), {}, True, "no key needed"),
        (ProviderSettings(anthropic_base_url="http://example.com"), {}, False, "plain HTTP"),
    ],
)
def test_available_says_why_without_the_key(
    settings: ProviderSettings, environ: dict[str, str], usable: bool, said: str
) -> None:
    answer = ProviderRegistry(settings, SystemClock(), environ).available()
    assert answer["scripted"] == (True, "echoes the prompt")
    assert answer["anthropic"][0] is usable
    assert said in answer["anthropic"][1]
    assert "very-secret" not in answer["anthropic"][1]
