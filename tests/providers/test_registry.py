from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.budgets.prices import Prices
from ksi_mcp.clock import SystemClock
from ksi_mcp.config import Config
from ksi_mcp.errors import Conflict, Invalid, NotFound, ProviderError
from ksi_mcp.providers.base import Message, Request, Usage
from ksi_mcp.providers.credentials import Credentials
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
        "b: {provider: anthropic, model: m-2, price: free}\n"
        "c: {model: m-3, base_url: 'https://c.example', price: free}\n"
    )
    config: dict[str, Any] = {
        "prices": {"anthropic:m-2": price},
        "openai_compatible": {"base_url": "http://[::1]:8000/v1"},
    }
    assert registry_of(root=tmp_path, **config).price_overrides() == {
        **BUILT_IN_PRICES,
        "anthropic:m-1": price,
        "anthropic:m-2": price,
        "openai_compatible@c:m-3": "free",
        "openai_compatible:*": "free",
    }


@pytest.mark.parametrize("before", [None, "other: {model: m-1}\n", "late: {model: m-1, base_url: 'http://[::1]:1'}\n"])
async def test_what_was_free_at_the_start_is_not_called_elsewhere_later(tmp_path: Path, before: str | None) -> None:
    file = tmp_path / "profiles.yaml"
    if before is not None:
        file.write_text(before)
    registry = registry_of({"A_KEY": "canary-a"}, root=tmp_path)
    prices = registry.price_overrides()
    late = "late: {model: m-1, base_url: 'https://paid.example/v1', api_key_env: A_KEY}\n"
    file.write_text(late + "ollama: {base_url: 'https://paid.example/v1'}\nopen: {model: m-2}\n")
    for name in ("late", "ollama"):
        with pytest.raises(Invalid, match="when the server started") as caught:
            await registry.names.named(name)
        assert "restart the server" in caught.value.text()
        with pytest.raises(Invalid, match="when the server started"):
            registry.check(f"openai_compatible@{name}")
    assert (await registry.names.named("open")) is not None
    ollama: Any = await registry.get("openai_compatible@ollama")  # an agent that was there before
    assert ollama._base_url == "http://127.0.0.1:11434/v1"
    if before is None or "late" not in before:
        with pytest.raises(Invalid, match="when the server started"):
            await registry.get("openai_compatible@late")
    assert registry.price_overrides() == prices
    assert any("late" in str(problem.profile) for problem in registry.profiles.problems())
    await registry.aclose()


async def test_a_key_that_is_set_later_is_found(tmp_path: Path) -> None:
    without_ring = "keyring.backends.fail.Keyring"
    environ = {"KSI_CREDENTIALS_KEY": "a long enough passphrase", "PYTHON_KEYRING_BACKEND": without_ring}
    registry = registry_of(environ, root=tmp_path)
    without: Any = await registry.get("anthropic")
    assert without.lacks_key
    Credentials(environ, tmp_path).set("ANTHROPIC_API_KEY", "canary-late")
    now: Any = await registry.get("anthropic")
    assert now._api_key == "canary-late"
    assert await registry.get("anthropic") is now
    await registry.aclose()


DOCS = Path(__file__).parent.parent.parent / "docs" / "providers.md"


async def test_the_example_of_the_documentation_does_what_the_text_says(tmp_path: Path) -> None:
    section = DOCS.read_text().partition("## Model profiles")[2]
    (tmp_path / "profiles.yaml").write_text(section.split("```yaml\n")[1].split("```")[0])
    registry = registry_of({"ANTHROPIC_API_KEY": "canary-a"}, root=tmp_path)
    named = await registry.names.named("router")
    assert named is not None
    assert named.provider(None) == "openai_compatible@router"
    assert named.fallback("openai_compatible@router") == (
        "anthropic:claude-sonnet-5-5", "anthropic:claude-haiku-5-5",
    )  # fmt: skip
    own = await registry.names.fallback(("fast", "m-1"), provider="openai_compatible@router", model="m")
    assert own == ("anthropic:claude-haiku-5-5", "m-1")
    prices = Prices(registry.price_overrides())
    assert prices.worst_case_usd_micros("openai_compatible@router", named.model, 1_000_000, 1_000_000) > 0
    assert prices.worst_case_usd_micros("openai_compatible@local", "qwen3:8b", 1_000_000, 1_000_000) == 0
    assert registry.profiles.problems() == ()


async def test_what_stands_in_is_left_out_where_nobody_answers_by_default(tmp_path: Path) -> None:
    (tmp_path / "profiles.yaml").write_text(
        "r: {model: m-1, base_url: 'https://r.example/v1', fallback: [balanced, m-2]}\n"
        "ollama: {base_url: 'http://127.0.0.1:1/v1'}\nlm_studio: {base_url: 'http://127.0.0.1:1/v1'}\n"
    )
    named = await registry_of({"PATH": "", "HOME": "/nonexistent"}, root=tmp_path).names.named("r")
    assert named is not None
    assert named.fallback("openai_compatible@r") == ("openai_compatible@r:m-2",)
    assert named.fallback("scripted") == ("scripted:claude-sonnet-5-5", "scripted:claude-haiku-5-5", "scripted:m-2")


# ---------------------------------------------------------------------- providers of other packages

PLUGIN = """
import asyncio
from ksi_mcp.errors import ProviderError
from ksi_mcp.providers.base import Answer, ToolUse, Traits, Usage

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

class Wild(Parrot):
    name = "anthropic"

    def __init__(self, settings, credentials):
        self.how, self.find = settings["how"], credentials

    async def complete(self, request, *, deadline_s, on_text=None):
        on_text("so far")
        key = self.find("PARROT_KEY")
        if self.how == "raises":
            raise RuntimeError("bad key " + key)
        if self.how == "speechless":
            raise type("Odd", (Exception,), {"__str__": lambda self: 1 / 0})
        if self.how == "exits":
            raise SystemExit(key)
        if self.how == "its own":
            raise ProviderError("it said " + key, kind="rate", billed="no", retry_after_s=2, hint=key)
        if self.how == "late":
            await asyncio.sleep(60)
        if self.how == "no answer":
            return {"text": key}
        if self.how == "text":
            on_text(key.encode())
        more = {
            "negative": {"usage": Usage(input_tokens=-5)},
            "truth": {"usage": Usage(input_tokens=True)},
            "absurd": {"usage": Usage(input_tokens=1, output_tokens=10**9)},
            "no usage": {"usage": {}},
            "refund": {"cost_usd_micros": -1},
            "half a micro": {"cost_usd_micros": 0.5},
            "session": {"session": {"a": object()}},
            "call": {"tool_uses": ("look",), "stop_reason": "tool_use"},
            "reason": {"stop_reason": "bored"},
            "names": {"tool_uses": (ToolUse(id=key, name=key, input={}),), "stop_reason": "tool_use"},
        }.get(self.how, {})
        return Answer(**{"text": "hello", "model": key, "stop_reason": "end_turn", "request_id": key, **more})

    async def aclose(self):
        raise RuntimeError("cannot close " + self.find("PARROT_KEY"))
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
    names += "wild = ksi_parrot:Wild\n"
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
    assert provider.inner.key == "canary-p"
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


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("raises", "bug", r"RuntimeError: bad key \[key\]"),
        ("speechless", "bug", "Odd: it does not say why"),
        ("exits", "bug", r"SystemExit: \[key\]"),
        ("its own", "rate", r"it said \[key\]"),
        ("late", "timeout", "within its time"),
        ("no answer", "bug", "it answered with dict"),
        ("text", "bug", "its text is none"),
        ("negative", "bug", "its usage is none"),
        ("truth", "bug", "its usage is none"),
        ("absurd", "bug", "its usage is none"),
        ("no usage", "bug", "its usage is none"),
        ("refund", "bug", "its cost is none"),
        ("half a micro", "bug", "its cost is none"),
        ("session", "bug", "no small JSON"),
        ("call", "bug", "its tool calls are none"),
        ("reason", "bug", "a reason that there is not"),
    ],
)
async def test_whatever_another_package_does_is_an_error_of_its_provider(
    parrot: None, how: str, kind: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry = registry_of({"PARROT_KEY": "canary-p"}, providers={"wild": {"how": how}})
    provider = await registry.get("wild")
    assert provider.name == "wild"
    heard: list[str] = []
    with pytest.raises(ProviderError, match=said) as caught:
        await provider.complete(ASK, deadline_s=0.05 if how == "late" else 10, on_text=heard.append)
    error = caught.value
    assert (error.kind, error.billed) == (kind, "no" if how == "its own" else "unknown")
    assert error.partial_text == ("" if how == "its own" else "so far")
    assert heard == ["so far"]
    assert "canary" not in "".join(traceback.format_exception(error)) + error.text() + caplog.text
    with pytest.raises(ProviderError, match=r"cannot close \[key\]"):
        await registry.aclose()


async def test_an_answer_of_another_package_is_told_without_its_key_and_never_free(parrot: None) -> None:
    registry = registry_of({"PARROT_KEY": "canary-p"}, providers={"wild": {"how": "names"}})
    answer = await (await registry.get("wild")).complete(ASK, deadline_s=10, on_text=lambda _: None)
    assert "canary" not in repr(answer)
    assert (answer.model, answer.request_id, answer.tool_uses[0].name) == ("[key]", "[key]", "[key]")
    assert answer.usage == Usage(output_tokens=len("hello{}"), estimated=True)
