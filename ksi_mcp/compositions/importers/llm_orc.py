"""Ensembles of LLM Orchestra: agents that depend on each other, and a coordinator that draws it together. Pure."""

from __future__ import annotations

from typing import Any, Final

from ksi_mcp.compositions.importers.model import Notes, named, slug
from ksi_mcp.compositions.model import shorten
from ksi_mcp.compositions.reading import positive
from ksi_mcp.errors import Invalid

COORDINATOR: Final = "coordinator"
_AGENT_SIGNS: Final = frozenset(
    {"model_profile", "depends_on", "fan_out", "input_key", "ensemble", "script", "timeout_seconds", "loop", "dispatch"}
)
_PROVIDERS: Final = {
    "anthropic": "anthropic",
    "anthropic-api": "anthropic",
    "anthropic-claude-pro-max": "claude_cli",
    "claude-cli": "claude_cli",
    "ollama": "openai_compatible@ollama",
}
"""Theirs, and what answers the same calls here. The others are kept and not used."""

_AGENT_KNOWN: Final = frozenset(
    {"name", "model", "model_profile", "provider", "system_prompt", "prompt", "timeout_seconds", "depends_on"}
)
_WAITING: Final = ("script", "ensemble", "loop", "dispatch", "fan_out", "input_key", "when", "parameters")
_ENSEMBLE_KNOWN: Final = frozenset({"name", "description", "agents", COORDINATOR, "version", "tags", "type"})


def looks_like(document: dict[str, Any]) -> bool:
    """Whether a document is an ensemble of theirs."""
    if "type" in document or "component_type" in document or "name" not in document:
        return False
    agents = document.get("agents")
    if not isinstance(agents, list) or not agents or not all(isinstance(agent, dict) for agent in agents):
        return False
    return COORDINATOR in document or any(_AGENT_SIGNS & agent.keys() for agent in agents)


def convert(document: dict[str, Any], path: str) -> tuple[dict[str, Any], Notes]:
    """An ensemble.

    Raises:
        Invalid: two agents have one name, or one depends on what is not there.
    """
    notes = Notes()
    name = named(document, path.rsplit("/", 1)[-1].rsplit(".", 1)[0], notes)
    if name is None:
        raise Invalid(f"the name {shorten(str(document.get('name')))!r} cannot be that of a composition")
    made: dict[str, Any] = {"name": name, "type": "ensemble"}
    made.update({key: document[key] for key in ("version", "description", "tags") if key in document})
    raw = document.get("agents")
    entries: list[Any] = raw if isinstance(raw, list) else []
    agents: dict[str, Any] = {}
    for place, entry in enumerate(entries):
        role = slug(entry.get("name")) if isinstance(entry, dict) else None
        if role is None or not isinstance(entry, dict):
            raise Invalid(f"agents.{place} has no name")
        if role in agents:
            raise Invalid(f"two agents are named {role!r}")
        agents[role] = _agent(entry, f"agents.{role}", notes)
    if isinstance(coordinator := document.get(COORDINATOR), dict) and coordinator:
        _add_coordinator(agents, coordinator, notes)
    for role, agent in agents.items():
        if missing := [each for each in agent.get("depends_on", ()) if each not in agents]:
            raise Invalid(f"agents.{role} depends on {shorten(missing[0])!r}, which is not there")
    made["agents"] = agents
    notes.mapped.append(f"agents: {len(agents)} by name")
    for key, value in document.items():
        if key not in _ENSEMBLE_KNOWN:
            made[key] = value
            notes.unused.append(f"{shorten(key)}: kept")
    return made, notes


def _agent(entry: dict[str, Any], where: str, notes: Notes) -> dict[str, Any]:
    agent: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    profile, model = entry.get("model_profile"), entry.get("model")
    if isinstance(profile, str):
        agent["model"] = profile
        notes.mapped.append(f"{where}.model_profile: {shorten(profile)!r}, to be set up as a model profile here")
        if model is not None:
            theirs["model"] = model
    elif isinstance(model, str):
        agent["model"] = model
    provider = entry.get("provider")
    if isinstance(provider, str) and provider in _PROVIDERS:
        agent["provider"] = _PROVIDERS[provider]
        if agent["provider"] != provider:
            notes.mapped.append(f"{where}.provider: {provider!r} is {agent['provider']!r} here")
    elif provider is not None:
        theirs["provider"] = provider
        notes.unused.append(f"{where}.provider: {shorten(str(provider))!r} is not there; the default one is asked")
    prompt = entry.get("system_prompt", entry.get("prompt"))
    if isinstance(prompt, str):
        agent["prompt"] = prompt.strip()
    if (seconds := positive(entry.get("timeout_seconds"))) is not None:
        agent["timeout_s"] = seconds
    if "depends_on" in entry:
        agent["depends_on"] = _names(entry["depends_on"])
    for key, value in entry.items():
        if key in _AGENT_KNOWN:
            continue
        agent[key] = value
        waits = key in _WAITING
        notes.unused.append(f"{where}.{shorten(key)}: kept" + (", not carried out by this version" if waits else ""))
    if theirs:
        agent["llm_orc"] = theirs
    return agent


def _add_coordinator(agents: dict[str, Any], coordinator: dict[str, Any], notes: Notes) -> None:
    role = COORDINATOR if COORDINATOR not in agents else "ensemble_coordinator"
    if role in agents:
        raise Invalid(f"two agents are named {role!r}")
    needed = {each for agent in agents.values() for each in agent.get("depends_on", ())}
    body = {key: value for key, value in coordinator.items() if key != "synthesis_prompt"}
    made = _agent(body, role, notes)
    prompts = [made.get("prompt"), coordinator.get("synthesis_prompt")]
    text = "\n\n".join(each.strip() for each in prompts if isinstance(each, str) and each.strip())
    if text:
        made["prompt"] = text
    made["depends_on"] = [each for each in agents if each not in needed]
    agents[role] = made
    notes.mapped.append(f"{COORDINATOR}: the agent {role!r}, after all that nobody else waits for")


def _names(value: Any) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    return [slug(entry.get("agent_name") if isinstance(entry, dict) else entry) or str(entry) for entry in entries]
