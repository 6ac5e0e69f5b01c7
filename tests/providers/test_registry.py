from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.clock import SystemClock
from ksi_mcp.config import Config
from ksi_mcp.errors import Conflict, Invalid, NotFound, ProviderError
from ksi_mcp.providers.base import Message, Request
from ksi_mcp.providers.registry import BUILT_IN_PRICES, ProviderRegistry, ProviderSettings

ASK = Request(model="m", system="", messages=(Message(role="user", blocks=("hi",)),), agent="ann")


def registry_of(
    environ: dict[str, str] | None = None, *, root: Path | None = None, project: Path | None = None, **config: Any
) -> ProviderRegistry:
    settings = ProviderSettings(config=Config(**config), root=root, project=project)
    return ProviderRegistry(settings, SystemClock(), environ or {})


async def test_a_provider_is_built_once_and_the_default_needs_no_name() -> None:
    settings = ProviderSettings(config=Config(provider="scripted"), scripted_script={"default": {"reply": "ok"}})
    registry = ProviderRegistry(settings, SystemClock(), {})
    provider = await registry.get()
    assert provider is await registry.get("scripted")
    assert (await provider.complete(ASK, deadline_s=1)).text == "ok"
    assert (await registry.get("anthropic")).name == "anthropic"
    await registry.aclose()
    with pytest.raises(Conflict):
        await registry.get("scripted")


async def test_an_unknown_provider_is_told_which_ones_there_are() -> None:
    with pytest.raises(NotFound, match="unknown provider 'openia'") as caught:
        await registry_of().get("openia")
    assert "anthropic, claude_cli, external, openai_compatible" in caught.value.text()
    with pytest.raises(Invalid, match="unknown provider 'openai_compatible@nowhere'"):
        registry_of().check("openai_compatible@nowhere")


async def test_a_wrong_script_is_refused_when_the_provider_is_built() -> None:
    settings = ProviderSettings(scripted_script={"replies": [{}]})
    registry = ProviderRegistry(settings, SystemClock(), {})
    assert registry.available()["scripted"][0] is False
    with pytest.raises(Invalid, match="script"):
        await registry.get("scripted")


async def test_nobody_is_built_for_turns_that_are_answered_by_hand() -> None:
    registry = registry_of()
    assert registry.traits("external").parks
    with pytest.raises(Invalid, match="'external' is never called"):
        await registry.get("external")


async def test_a_place_without_a_base_url_says_what_to_do() -> None:
    with pytest.raises(Invalid, match="no base_url") as caught:
        await registry_of().get("openai_compatible")
    assert "ollama" in caught.value.text()


@pytest.mark.parametrize(
    ("config", "environ", "usable", "said"),
    [
        ({}, {}, False, "set ANTHROPIC_API_KEY"),
        ({}, {"ANTHROPIC_API_KEY": "sk-ant-very-secret"}, True, "ANTHROPIC_API_KEY (environment)"),
        ({"anthropic": {"api_key_env": "MY_KEY"}}, {"ANTHROPIC_API_KEY": "x"}, False, "MY_KEY"),
        ({"anthropic": {"base_url": "http://127.0.0.1:1"}}, {}, True, "no key needed"),
        ({"anthropic": {"base_url": "http://example.com"}}, {}, False, "plain HTTP"),
    ],
)
def test_available_says_why_without_the_key(
    config: dict[str, Any], environ: dict[str, str], usable: bool, said: str
) -> None:
    answer = registry_of(environ, **config).available()
    assert answer["scripted"] == (True, "echoes the prompt")
    assert answer["anthropic"][0] is usable
    assert said in answer["anthropic"][1]
    assert "very-secret" not in str(answer)


async def test_a_key_goes_only_to_the_place_that_it_was_configured_for(tmp_path: Path) -> None:
    (tmp_path / "profiles.yaml").write_text(
        "gateway: {provider: anthropic, model: m, base_url: 'https://gw.example'}\n"
        "router: {model: m, base_url: 'https://router.example/v1', api_key_env: ROUTER_KEY, in_flight: 3}\n"
        "local: {model: m, base_url: 'http://localhost:9/v1'}\n"
    )
    environ = {"ANTHROPIC_API_KEY": "canary-a", "OPENAI_KEY": "canary-o", "ROUTER_KEY": "canary-r"}
    config: dict[str, Any] = {"openai_compatible": {"base_url": "https://o.example/v1", "api_key_env": "OPENAI_KEY"}}
    registry = registry_of(environ, root=tmp_path, **config)
    keys = {}
    for name in ("anthropic", "openai_compatible", "anthropic@gateway", "openai_compatible@router"):
        provider: Any = await registry.get(name)
        assert provider.name == name
        keys[name] = provider._api_key
    assert keys == {
        "anthropic": "canary-a",
        "openai_compatible": "canary-o",
        "anthropic@gateway": "",
        "openai_compatible@router": "canary-r",
    }
    local: Any = await registry.get("openai_compatible@local")
    assert (local._api_key, local.loopback) == ("", True)
    assert registry.in_flight("openai_compatible@router") == 3
    assert registry.in_flight("openai_compatible@local") == 64
    assert "canary" not in repr(registry.credentials) + str(registry.available()) + repr(registry.settings)
    await registry.aclose()


async def test_a_place_whose_key_is_missing_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "profiles.yaml").write_text("r: {model: m, base_url: 'https://r.example', api_key_env: ROUTER_KEY}\n")
    registry = registry_of(root=tmp_path)
    with pytest.raises(ProviderError, match="has no API key") as caught:
        await registry.get("openai_compatible@r")
    assert (caught.value.kind, caught.value.billed) == ("auth", "no")
    assert registry.available()["openai_compatible@r"] == (False, "r.example, no API key; set ROUTER_KEY")


def test_how_many_calls_may_be_under_way_is_said_by_kind_and_place(tmp_path: Path) -> None:
    registry = registry_of(
        root=tmp_path,
        anthropic={"in_flight": 7},
        openai_compatible={"in_flight": 5},
        claude_cli={"processes": 2},
    )
    asked = ("anthropic", "openai_compatible@ollama", "claude_cli", "scripted", "external")
    assert [registry.in_flight(name) for name in asked] == [7, 5, 2, None, None]


def test_what_the_built_in_profiles_cost_is_known_without_reading_them() -> None:
    assert registry_of().profiles.prices() == BUILT_IN_PRICES
    assert registry_of().price_overrides() == dict(BUILT_IN_PRICES)


def test_prices_of_profiles_come_below_those_of_the_configuration(tmp_path: Path) -> None:
    price = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
    (tmp_path / "profiles.yaml").write_text(
        "a: {provider: anthropic, model: m-1, price: {input_usd_per_mtok: 1, output_usd_per_mtok: 2}}\n"
        "b: {model: m-2, price: free}\n"
        "c: {model: m-3, base_url: 'https://c.example', price: free}\n"
    )
    config: dict[str, Any] = {"prices": {"m-2": price}, "openai_compatible": {"base_url": "http://[::1]:8000/v1"}}
    assert registry_of(root=tmp_path, **config).price_overrides() == {
        **BUILT_IN_PRICES,
        "anthropic:m-1": price,
        "m-2": price,
        "openai_compatible@c:m-3": "free",
        "openai_compatible:*": "free",
    }


# ---------------------------------------------------------------------- providers of other packages

PLUGIN = """
from ksi_mcp.providers.base import Answer, Traits

class Parrot:
    name = "parrot"
    traits = Traits(metered=False)

    def __init__(self, settings, credentials):
        self.greeting = settings["greeting"]
        self.key = credentials("PARROT_KEY")

    async def complete(self, request, *, deadline_s, on_text=None):
        return Answer(text=self.greeting, model=request.model, stop_reason="end_turn")

    async def aclose(self):
        pass

def fails(settings, credentials):
    raise RuntimeError("no cage for " + credentials("PARROT_KEY"))

def nothing(settings, credentials):
    return object()
"""


@pytest.fixture
def parrot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with three providers and one that borrows a name of ours."""
    site = tmp_path / "site"
    info = site / "ksi_parrot-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "ksi_parrot.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ksi-parrot\nVersion: 1.0\n")
    names = "parrot = ksi_parrot:Parrot\nfails = ksi_parrot:fails\nnothing = ksi_parrot:nothing\n"
    (info / "entry_points.txt").write_text(
        f"[ksi_mcp.providers]\n{names}gone = ksi_parrot:gone\nanthropic = ksi_parrot:Parrot\n"
    )
    monkeypatch.syspath_prepend(str(site))


async def test_another_package_adds_a_provider(parrot: None) -> None:
    config: dict[str, Any] = {"providers": {"parrot": {"greeting": "hello", "in_flight": 2}}}
    registry = registry_of({"PARROT_KEY": "canary-p"}, **config)
    assert registry.check("parrot") == "parrot"
    provider: Any = await registry.get("parrot")
    assert (await provider.complete(ASK, deadline_s=1)).text == "hello"
    assert provider.key == "canary-p"
    assert registry.traits("parrot").metered is False
    assert registry.in_flight("parrot") == 2
    assert registry.available()["parrot"] == (True, "from another package (ksi_parrot:Parrot)")
    assert (await registry.get("anthropic")).__class__.__name__ == "AnthropicProvider"
    await registry.aclose()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fails", r"RuntimeError: no cage for \[key\]"),
        ("nothing", "what it made has no complete"),
        ("gone", "AttributeError"),
        ("parrot", "KeyError: 'greeting'"),
    ],
)
async def test_a_package_that_does_not_work_is_named_without_its_key(parrot: None, name: str, said: str) -> None:
    with pytest.raises(ProviderError, match=said) as caught:
        await registry_of({"PARROT_KEY": "canary-p"}).get(name)
    assert "canary" not in caught.value.text()
    assert caught.value.billed == "no"
