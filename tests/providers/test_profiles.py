from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp import yamlio
from ksi_mcp.errors import Invalid
from ksi_mcp.providers.profiles.layers import Profiles
from ksi_mcp.providers.profiles.records import Link


def profiles_of(tmp_path: Path, user: Any = None, project: Any = None, *, knows: tuple[str, ...] = ()) -> Profiles:
    """The built-in ones, those of a user and those of a project, each as a document or as text."""
    home, place = tmp_path / "home", tmp_path / "project"
    for folder, said in ((home, user), (place / ".ksi", project)):
        folder.mkdir(parents=True, exist_ok=True)
        if said is not None:
            (folder / "profiles.yaml").write_text(said if isinstance(said, str) else yamlio.dump(said))
    return Profiles(user=home, project=place, knows=knows.__contains__)


def models(profiles: Profiles, name: str) -> list[str]:
    profile = profiles.get(name)
    assert profile is not None
    return [f"{link.provider or '-'}:{link.model}" for link in (profile.first, *profile.chain)]


def test_the_built_in_profiles_can_be_used() -> None:
    profiles = Profiles(user=None, project=None, knows=lambda _: False)
    assert list(profiles.all()) == ["balanced", "claude_code", "fast", "lm_studio", "ollama", "smart"]
    assert profiles.problems() == ()
    assert models(profiles, "smart") == ["-:claude-opus-5-5", "-:claude-sonnet-5-5"]
    assert models(profiles, "claude_code") == ["claude_cli:sonnet"]
    assert models(profiles, "ollama") == ["openai_compatible@ollama:None"]
    assert profiles.get("claude-opus-5-5") is None


def test_a_later_layer_changes_single_keys(tmp_path: Path) -> None:
    profiles = profiles_of(
        tmp_path,
        {"smart": {"effort": "high", "timeout_s": 90}, "ollama": {"model": "qwen3:8b"}},
        {"smart": {"effort": None, "max_tokens": 100}, "fast": {"model": "claude-fable-5-2"}},
    )
    smart = profiles.get("smart")
    assert smart is not None
    assert (smart.layer, smart.settings) == ("project", {"timeout_s": 90, "max_tokens": 100})
    assert models(profiles, "fast") == ["-:claude-fable-5-2"]
    assert models(profiles, "ollama") == ["openai_compatible@ollama:qwen3:8b"]


def test_a_chain_goes_depth_first_and_names_no_model_twice(tmp_path: Path) -> None:
    profiles = profiles_of(
        tmp_path,
        {
            "a": {"model": "m-1", "provider": "anthropic", "fallback": ["b", "c", "m-9", "scripted:m-1"]},
            "b": {"model": "m-2", "base_url": "http://localhost:1/v1", "fallback": ["c", "gemma:2b"]},
            "c": {"model": "m-3", "provider": "claude_cli", "fallback": "anthropic:m-1"},
        },
    )
    b = "openai_compatible@b"
    expected = ["anthropic:m-1", f"{b}:m-2", "claude_cli:m-3", f"{b}:gemma:2b", "anthropic:m-9", "scripted:m-1"]
    assert models(profiles, "a") == expected
    assert list(profiles.links("c", at=None)) == [
        Link(provider="claude_cli", model="m-3"),
        Link(provider="anthropic", model="m-1"),
    ]


def test_a_chain_that_goes_in_a_circle_is_refused_with_its_way(tmp_path: Path) -> None:
    profiles = profiles_of(
        tmp_path,
        {
            "a": {"model": "m-1", "fallback": ["b"]},
            "b": {"model": "m-2", "fallback": ["c"]},
            "c": {"model": "m-3", "fallback": ["b"]},
            "own": {"model": "m-4", "fallback": ["own"]},
            "well": {"model": "m-5", "fallback": ["m-6"]},
        },
    )
    for name, way in (("a", "b -> c -> b"), ("b", "b -> c -> b"), ("c", "c -> b -> c"), ("own", "own -> own")):
        with pytest.raises(Invalid, match=f"in a circle: {way}|'b' cannot be used|'c' cannot be used"):
            profiles.get(name)
    assert models(profiles, "well") == ["-:m-5", "-:m-6"]


def test_diamonds_of_fallbacks_do_not_blow_up(tmp_path: Path) -> None:
    said = {f"p{i}": {"model": f"m-{i}", "fallback": [f"p{i + 1}", f"q{i + 1}"]} for i in range(8)}
    said |= {f"q{i}": {"model": f"n-{i}", "fallback": [f"p{i + 1}", f"q{i + 1}"]} for i in range(8)}
    profiles = profiles_of(tmp_path, {**said, "p8": {"model": "m-8"}, "q8": {"model": "n-8"}})
    assert len(models(profiles, "p0")) == 17
    long = {f"x{i}": {"model": f"m-{i}", "fallback": [f"x{i + 1}"]} for i in range(400)}
    profiles = profiles_of(tmp_path, {**long, "x400": {"model": "m-400"}})
    with pytest.raises(Invalid, match="more than 20"):
        profiles.get("x0")
    assert len(models(profiles, "x390")) == 11


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"modell": "m-1"}, "modell: Extra inputs"),
        ({}, "names no model"),
        (None, "must be a mapping"),
        ({"model": "m-1", "provider": "openia"}, "unknown provider 'openia'"),
        ({"model": "m-1", "provider": "openai_compatible@nowhere"}, "unknown provider 'openai_compatible@nowhere'"),
        ({"model": "m-1", "fallback": ["smrat"]}, "unknown fallback 'smrat'"),
        ({"model": "m-1", "fallback": ["openia:m-2"]}, "unknown provider 'openia'"),
        ({"model": "m-1", "fallback": ["anthropic:"]}, "unknown provider 'anthropic'"),
        ({"model": "m-1", "fallback": [f"m-{i}" for i in range(11)]}, "fallback: List should have at most 10"),
        ({"model": "m" * 201}, "model: String should have at most 200"),
        ({"model": "m\n1"}, "model: String should match"),
        ({"model": "m-1", "max_tokens": 0}, "max_tokens: Input should be greater"),
        ({"model": "m-1", "timeout_s": 4000}, "timeout_s: Input should be less"),
        ({"model": "m-1", "price": "cheap"}, "price"),
        (
            {"model": "m-1", "provider": "anthropic", "price": {"input_usd_per_mtok": 1}},
            "lacks output_usd_per_mtok",
        ),
        (
            {
                "model": "m-1",
                "provider": "anthropic",
                "price": {"input_usd_per_mtok": -1, "output_usd_per_mtok": 1},
            },
            "holds '-1.0'",
        ),
        ({"model": "m-1", "price": "free"}, "price goes with a provider or a base_url"),
        ({"provider": "anthropic", "price": "free"}, "price goes with a model"),
        (
            {"model": "m-1", "base_url": "https://example.com", "api_key_env": "KSI_CREDENTIALS_KEY"},
            "nobody's API key",
        ),
        ({"model": "m-1", "api_key_env": "A_KEY"}, "api_key_env goes with a base_url"),
        ({"model": "m-1", "in_flight": 3}, "in_flight goes with a base_url"),
        ({"model": "m-1", "base_url": "http://example.com/v1"}, "plain HTTP would show the API key"),
        ({"model": "m-1", "base_url": "https://u:canary-secret@example.com"}, "holds a user or password"),
        ({"model": "m-1", "base_url": "file:///etc/passwd"}, "is malformed"),
        ({"model": "m-1", "base_url": "https://example.com", "provider": "claude_cli"}, "has no base_url"),
        ({"model": "m-1", "base_url": "https://example.com", "api_key_env": "sk-canary-secret"}, "no name of a cred"),
    ],
)
def test_a_mistake_costs_its_profile_only(tmp_path: Path, said: Any, wrong: str) -> None:
    profiles = profiles_of(tmp_path, {"mine": said, "good": {"model": "m-1"}})
    with pytest.raises(Invalid, match=wrong) as caught:
        profiles.get("mine")
    assert caught.value.message.startswith("profile 'mine' in profiles.yaml (user): ")
    assert "canary" not in caught.value.text()
    ((layer, name),) = {(problem.layer, problem.profile) for problem in profiles.problems()}
    assert (layer, name) == ("user", "mine")
    assert models(profiles, "good") == ["-:m-1"]
    assert "mine" not in profiles.all()


@pytest.mark.parametrize("name", ["a b", "a:b", "a@b", "1a", "ä", "x" * 41])
def test_a_name_that_could_be_taken_for_something_else_is_refused(tmp_path: Path, name: str) -> None:
    profiles = profiles_of(tmp_path, {name: {"model": "m-1"}})
    assert "name must be" in profiles.problems()[0].message
    with pytest.raises(Invalid):
        profiles.get(name)


@pytest.mark.parametrize(
    "said",
    [
        {"base_url": "https://evil.example"},
        {"api_key_env": "ANTHROPIC_API_KEY"},
        {"price": "free"},
        {"in_flight": 1},
        {"base_url": None},
        {"provider": "anthropic"},
    ],
)
def test_a_project_does_not_say_where_keys_go_or_what_models_cost(tmp_path: Path, said: dict[str, Any]) -> None:
    mine = {"model": "m-1", "base_url": "https://mine.example/v1", "api_key_env": "MY_KEY"}
    profiles = profiles_of(tmp_path, {"mine": mine}, {"mine": said})
    with pytest.raises(Invalid, match=r"profile 'mine' in profiles.yaml \(project\): .* not a project's to say"):
        profiles.get("mine")
    place = profiles.endpoints()["openai_compatible@mine"]
    assert (place.base_url, place.api_key_env) == ("https://mine.example/v1", "MY_KEY")


def test_a_project_that_puts_another_model_in_its_place_does_not_get_its_price(tmp_path: Path) -> None:
    user = {"local": {"model": "m-1", "provider": "anthropic", "price": "free"}}
    profiles = profiles_of(tmp_path, user, {"local": {"model": "claude-opus-5-5"}})
    with pytest.raises(Invalid, match="model is not a project's to say"):
        profiles.get("local")
    prices = {key: price for key, price in profiles.prices().items() if key.startswith("anthropic")}
    assert prices == {"anthropic:m-1": "free"}


def test_a_project_may_choose_among_what_the_operator_has(tmp_path: Path) -> None:
    said = {"team": {"provider": "openai_compatible@ollama", "model": "qwen3:8b", "fallback": ["fast"]}}
    assert models(profiles_of(tmp_path, None, said), "team") == [
        "openai_compatible@ollama:qwen3:8b",
        "-:claude-haiku-5-5",
    ]


def test_two_prices_for_one_model_are_a_mistake(tmp_path: Path) -> None:
    price = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
    said = {"model": "m-1", "provider": "anthropic"}
    profiles = profiles_of(tmp_path, {"a": {**said, "price": "free"}, "b": {**said, "price": price}})
    assert profiles.get("a") is not None
    with pytest.raises(Invalid, match="another price"):
        profiles.get("b")


@pytest.mark.parametrize(
    "text", ["mine: {model: m-1\n", "- mine: 1\n- 'smart' : 2\n", "mine: !!python/object:os.x {}\n"]
)
def test_a_broken_file_costs_the_profiles_that_it_speaks_of(tmp_path: Path, text: str) -> None:
    profiles = profiles_of(tmp_path, text)
    with pytest.raises(Invalid, match=r"profiles.yaml \(user\)"):
        profiles.get("mine")
    assert profiles.get("fast") is not None
    assert profiles.get("claude-opus-5-5") is None  # a model, of which the file says nothing
    assert [problem.profile for problem in profiles.problems()] == [None]


def test_a_file_that_cannot_be_read_may_speak_of_any(tmp_path: Path) -> None:
    profiles = profiles_of(tmp_path)
    os.mkfifo(tmp_path / "project" / ".ksi" / "profiles.yaml")
    with pytest.raises(Invalid, match="no plain file"):
        profiles.get("fast")
    (tmp_path / "project" / ".ksi" / "profiles.yaml").unlink()
    (tmp_path / "project" / ".ksi" / "profiles.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(Invalid, match="not UTF-8"):
        profiles.get("fast")


def test_a_project_cannot_put_a_link_in_place_of_its_file(tmp_path: Path) -> None:
    profiles = profiles_of(tmp_path)
    (tmp_path / "secret").write_text("fast: {model: m-1}\n")
    (tmp_path / "project" / ".ksi" / "profiles.yaml").symlink_to(tmp_path / "secret")
    with pytest.raises(Invalid, match="cannot be opened"):
        profiles.get("fast")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    profiles = profiles_of(tmp_path, {"mine": {"model": "m-1"}})
    assert models(profiles, "mine") == ["-:m-1"]
    (tmp_path / "home" / "profiles.yaml").write_text("mine: {model: m-two-2}\n")
    assert models(profiles, "mine") == ["-:m-two-2"]
    (tmp_path / "home" / "profiles.yaml").unlink()
    assert profiles.get("mine") is None


@pytest.mark.parametrize(
    "said",
    [
        {"provider": "anthropic"},
        {"model": "claude-opus-5-5"},
        {"fallback": ["anthropic:claude-opus-5-5"]},
        {"fallback": None},
        {"timeout_s": 0.001},
    ],
)
def test_a_project_does_not_lead_the_operators_profile_elsewhere(tmp_path: Path, said: dict[str, Any]) -> None:
    user = {
        "private": {"model": "m-1", "provider": "openai_compatible@ollama", "fallback": ["m-2"]},
        "mine": {"model": "m-1", "provider": "openai_compatible@ollama"},
    }
    profiles = profiles_of(tmp_path, user, {"private": said, "mine": {"max_tokens": 9, "effort": "low"}})
    with pytest.raises(Invalid, match=rf"\(project\): {next(iter(said))} is not a project's to say"):
        profiles.get("private")
    assert models(profiles, "mine") == ["openai_compatible@ollama:m-1"]


def test_a_project_puts_nothing_behind_a_server_on_this_machine(tmp_path: Path) -> None:
    profiles = profiles_of(tmp_path, None, {"ollama": {"fallback": ["fast"]}, "lm_studio": {"model": "m-1"}})
    with pytest.raises(Invalid, match="fallback is not a project's to say: the profile has a base_url"):
        profiles.get("ollama")
    assert models(profiles, "lm_studio") == ["openai_compatible@lm_studio:m-1"]


@pytest.mark.parametrize("name", ["claude-haiku-5-5", "opus", "gpt-4o"])
def test_a_profile_of_a_project_cannot_be_taken_for_a_model(tmp_path: Path, name: str) -> None:
    said = {name: {"model": "claude-opus-5-5"}}
    with pytest.raises(Invalid, match="cannot be named like a model"):
        profiles_of(tmp_path, None, said).get(name)
    profiles = profiles_of(tmp_path, said, {name: {"effort": "low"}})  # where the operator calls it that, it is one
    assert models(profiles, name) == ["-:claude-opus-5-5"]


def test_places_and_prices_are_those_of_the_first_look(tmp_path: Path) -> None:
    local = {"model": "m-1", "base_url": "http://localhost:1/v1"}
    hand = {"model": "m-2", "provider": "anthropic", "price": "free"}
    profiles = profiles_of(tmp_path, {"local": local, "gone": local, "moved": local, "hand": hand})
    first, prices = dict(profiles.endpoints()), dict(profiles.prices())
    price = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
    now = {
        "local": {**local, "model": "m-3", "fallback": ["m-4"]},
        "moved": {**local, "base_url": "https://paid.example/v1"},
        "gone": {"model": "m-1", "provider": "anthropic"},
        "late": {**local, "api_key_env": "A_KEY"},
        "hand": {**hand, "price": price},
        "on_moved": {"model": "m-1", "fallback": ["moved"]},
    }
    (tmp_path / "home" / "profiles.yaml").write_text(yamlio.dump(now))
    assert models(profiles, "local") == ["openai_compatible@local:m-3", "openai_compatible@local:m-4"]
    for name in ("moved", "gone", "late"):
        with pytest.raises(Invalid, match="not what it was when the server started") as caught:
            profiles.get(name)
        assert caught.value.hint == "restart the server"
        with pytest.raises(Invalid, match="not what it was when the server started"):
            profiles.check_place(f"openai_compatible@{name}")
    with pytest.raises(Invalid, match="its fallback 'moved' cannot be used"):
        profiles.get("on_moved")
    assert {place.base_url for place in profiles.endpoints().values()} == {place.base_url for place in first.values()}
    assert "openai_compatible@late" not in profiles.endpoints()
    assert profiles.prices() == prices
    assert {problem.profile for problem in profiles.problems()} == {"moved", "gone", "late", "on_moved"}
    (tmp_path / "home" / "profiles.yaml").write_text("moved: {")  # half written
    assert profiles.endpoints() == first
    (tmp_path / "home" / "profiles.yaml").unlink()
    assert profiles.get("moved") is None


def test_a_data_folder_in_the_project_is_the_operators(tmp_path: Path) -> None:
    home = tmp_path / ".ksi"
    home.mkdir()
    (home / "profiles.yaml").write_text("mine: {model: m-1, provider: anthropic, price: free}\n")
    mine = Profiles(user=home, project=tmp_path, knows=lambda _: False).get("mine")
    assert mine is not None
    assert mine.layer == "user"


def test_a_provider_of_another_package_can_be_named(tmp_path: Path) -> None:
    profiles = profiles_of(tmp_path, {"p": {"model": "m-1", "provider": "parrot"}}, knows=("parrot",))
    assert models(profiles, "p") == ["parrot:m-1"]
