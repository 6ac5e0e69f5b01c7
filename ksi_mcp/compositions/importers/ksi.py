"""Compositions of KSI: YAML, or Markdown with front matter, much like ours in other words. Pure."""

from __future__ import annotations

import re
from typing import Any, Final

from ksi_mcp.compositions.importers.model import Notes, named, slug
from ksi_mcp.compositions.model import parse_composition, shorten
from ksi_mcp.errors import Invalid
from ksi_mcp.permissions import AGENT_CAPABILITIES, Capability

_CAPABILITIES: Final[dict[str, Capability]] = {
    **{name: name for name in AGENT_CAPABILITIES},
    "agent_messaging": "messaging",
    "multi_agent_coordination": "messaging",
    "agent_spawn": "spawn_agents",
    "multi_agent_orchestration": "spawn_agents",
    "event_routing": "routing_control",
    "decision_tracking": "decisions",
    "composition": "compositions",
    "pattern_discovery": "compositions",
    "pattern_adaptation": "compositions",
    "pattern_evolution": "compositions",
}
"""Their words for what an agent may be given here. Whatever else they list says what it is good at, not what it may."""

_RIGHTS: Final = (
    "security_profile",
    "security",
    "allowed_tools",
    "tools",
    "permissions",
    "permission_profile",
    "sandbox",
)
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_./-]{1,200}")
_UNUSED: Final = ("coordination", "resources", "transformers", "required_context", "compatibility", "event_routing")
_TYPE_KEYS: Final = ("type", "component_type")


def convert(document: dict[str, Any], path: str) -> tuple[dict[str, Any], Notes]:
    """The same composition in our words; unknown keys stay where they are.

    Raises:
        Invalid: no name can be made of its own or its file's.
    """
    notes = Notes()
    name = named(document, path.rsplit("/", 1)[-1].rsplit(".", 1)[0], notes)
    if name is None:
        raise Invalid(f"the name {shorten(str(document.get('name')))!r} cannot be that of a composition")
    made = {"name": name, **{key: value for key, value in document.items() if key != "name"}}
    _type(made, notes)
    _capabilities(made, "", notes)
    if "dependencies" in made and "components" not in made:
        _dependencies(made, notes)
    routing = made.get("routing")
    rules = routing.get("rules") if isinstance(routing, dict) else routing
    if isinstance(rules, list) and any(_is_broadcast(rule) for rule in rules):
        told = [{**rule, "to": "*"} if _is_broadcast(rule) else rule for rule in rules]
        made["routing"] = {**routing, "rules": told} if isinstance(routing, dict) else told
        notes.mapped.append("routing: `broadcast: true` is `to: '*'`")
    agents = made.get("agents")
    if isinstance(agents, dict):
        made["agents"] = {role: _agent(body, f"agents.{role}", notes) for role, body in agents.items()}
    elif isinstance(agents, list):
        made["agents"] = [_agent(body, f"agents.{place}", notes) for place, body in enumerate(agents)]
    for key in (*_RIGHTS, *_UNUSED):
        if key in made:
            right = " (what it may do, the operator's configuration says)" if key in _RIGHTS else ""
            notes.unused.append(f"{key}: kept{right}")
    return made, notes


def _type(made: dict[str, Any], notes: Notes) -> None:
    key = next((key for key in _TYPE_KEYS if key in made), None)
    if key is None:
        return
    word = made[key]
    try:
        parse_composition({"name": "x", key: word}, what="")
    except Invalid:
        kind = "orchestration" if "agents" in made or "orchestration_logic" in made else "component"
        notes.mapped.append(f"{key}: {shorten(str(word))!r} is a {kind} here")
        if key == "type":
            made["ksi_type"] = word
        made["type"] = kind


def _capabilities(body: dict[str, Any], where: str, notes: Notes) -> None:
    """Capabilities that can be asked for here, and the others where they have no effect."""
    asked = body.get("capabilities")
    if asked is None:
        return
    words: list[Any]
    if isinstance(asked, dict):
        words = [word for word, wanted in asked.items() if wanted is not False]
    elif isinstance(asked, str):
        words = [word.strip() for word in asked.split(",") if word.strip()]
    else:
        words = asked if isinstance(asked, list) else [asked]
    ours: dict[str, None] = {}
    others: list[Any] = []
    path = f"{where}.capabilities" if where else "capabilities"
    for word in words:
        known = _CAPABILITIES.get(word) if isinstance(word, str) else None
        if known is None:
            others.append(word)
        else:
            ours[known] = None
            if known != word:
                notes.mapped.append(f"{path}: {word!r} asks for {known!r}")
    if not others and isinstance(asked, list) and list(ours) == asked:
        return
    if others:
        body["ksi_capabilities"] = asked
        shown = ", ".join(shorten(str(word), 40) for word in others[:12])
        notes.unused.append(f"{path}: {shown} (kept as ksi_capabilities; none of it is asked for)")
    if ours:
        body["capabilities"] = list(ours)
    else:
        del body["capabilities"]


def _dependencies(made: dict[str, Any], notes: Notes) -> None:
    raw = made["dependencies"]
    entries = raw if isinstance(raw, list) else [raw]
    names = [slug(entry.rsplit("/", 1)[-1].removesuffix(".md")) for entry in entries if isinstance(entry, str)]
    found = [name for name in names if name]
    if found:
        made["components"] = found
        notes.mapped.append(f"dependencies: {len(found)} components, whose texts come first; their settings do not")


def _agent(body: Any, where: str, notes: Notes) -> Any:
    if not isinstance(body, dict):
        return body
    made = dict(body)
    _capabilities(made, where, notes)
    template = made.get("prompt_template")
    if isinstance(template, str) and _PLAIN_NAME.fullmatch(template):  # a name there, and would be the text here
        made["ksi_prompt_template"] = made.pop("prompt_template")
        notes.unused.append(f"{where}.prompt_template: {shorten(template)!r} (kept as ksi_prompt_template)")
    for key in _RIGHTS:
        if key in made:
            notes.unused.append(f"{where}.{key}: kept")
    return made


def _is_broadcast(rule: Any) -> bool:
    return isinstance(rule, dict) and rule.get("broadcast") is True and "to" not in rule
