"""The help of a tool's command, made of its declaration."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ksi_mcp.cli.twin.arguments import Parameter, item_schema, kinds_of
from ksi_mcp.cli.twin.parameter_words import words_for
from ksi_mcp.tools.tool import Tool

_LABELS: Final = {"string": "TEXT", "integer": "INTEGER", "number": "NUMBER", "boolean": "BOOLEAN", "object": "JSON"}
_UNITS: Final = {"_s": "SECONDS", "_usd": "USD"}
_SAMPLES: Final[Mapping[str, Any]] = {
    "agent": "ada",
    "agents": ["ada", "bob"],
    "amount": 1,
    "a": "debate",
    "account": "global",
    "action": "suspend",
    "b": "debate_short",
    "changes": [{"op": "delete", "rule_id": "r_1"}],
    "checkpoint": "before_the_vote",
    "composition": "researcher",
    "confidence": 0.8,
    "content": "The budget was cut by half.",
    "data": {"topic": "tea"},
    "decision": "ask two experts",
    "decision_id": "d_1",
    "document": "@debate.yaml",
    "event": "task:new",
    "evidence": ["o_1", "o_2"],
    "filter": {"orchestration": "o_1"},
    "from_event": 1,
    "insight": "two rounds are enough",
    "level": 1,
    "message": "What is new?",
    "name": "debate",
    "names": ["task:*"],
    "new_name": "debate_short",
    "orchestration": "o_1",
    "outcome": "success",
    "parent": "debate",
    "path": "debate.ksib",
    "pattern": "debate",
    "prompt": "What is new?",
    "reason": "it took too long",
    "requests": [{"agent": "ada", "prompt": "What is new?"}],
    "rule_id": "r_1",
    "source": "ada",
    "source_pattern": "task:*",
    "target": "ada",
    "task": "compare two drafts",
    "text": "Yes, go on.",
    "to_event": 500,
    "to_version": 12,
    "topic": "agent_send",
    "turn": "t_1",
    "turns": ["t_1", "t_2"],
    "updates": {"priority": 10},
    "usd": 1,
}
_BETTER: Final[Mapping[tuple[str, str], Any]] = {
    ("composition_combine", "name"): "debate_both",
    ("composition_export", "names"): ["debate"],
    ("composition_fork", "name"): "debate_short",
    ("composition_merge", "source"): "debate_short",
    ("composition_merge", "target"): "debate",
    ("name_suggest", "kind"): "agent",
    ("turn_move", "target"): "bob",
}
_SHOWN_TOO: Final[Mapping[str, Mapping[str, Any]]] = {
    "agent_send": {"wait_s": 50},
    "agent_spawn": {"name": "ada", "budget": {"usd": 1}},
    "agent_wait": {"timeout_s": 50},
    "budget_set": {"limits": {"usd": 5}},
    "composition_evaluate": {"suite": "debate_cases"},
    "composition_update": {"modifications": {"agents.judge.prompt": "Be brief."}},
    "event_emit": {"data": {"topic": "tea"}},
    "monitor_metrics": {"by": "agent"},
    "orchestration_complete": {"score": 0.9},
    "orchestration_start": {"vars": {"topic": "tea"}, "budget": {"usd": 1}},
    "routing_add_rule": {"condition": "data.score > 0.7"},
}


def label(parameter: Parameter) -> str:
    """What stands for a value in the help: `TEXT`, `SECONDS`, `now|drain`, `KEY=VALUE|JSON`."""
    if parameter.choices:
        return "|".join(parameter.choices)
    for ending, unit in _UNITS.items():
        if parameter.name.endswith(ending) and "number" in parameter.kinds:
            return unit
    return _label(parameter.schema, parameter.kinds)


def _label(schema: Mapping[str, Any], kinds: Sequence[str]) -> str:
    match kinds[0]:
        case "array":
            items = item_schema(schema)
            inner = _label(items, kinds_of(items))
            return "JSON|@FILE" if inner.startswith("KEY") else f"{inner}..."
        case "object":
            return "KEY=VALUE|JSON|@FILE"
        case "string" if "object" in kinds:
            return "TEXT|JSON"
        case "boolean" if "array" in kinds:
            return "true|false|NAME..."
        case kind:
            return _LABELS.get(kind, "JSON")


def described(tool: Tool, parameter: Parameter, *, also: str = "") -> str:
    """A parameter's description, with its fields, its other spelling, its default and its limits."""
    schema = parameter.schema
    parts = [text] if (text := words_for(tool.name, parameter.name, schema)) else []
    if fields := [*schema.get("properties", {}), *item_schema(schema).get("properties", {})]:
        parts.append(f"fields: {', '.join(fields)}")
    if also:
        parts.append(f"or {also}")
    facts = ["required"] if parameter.required else []
    if (default := schema.get("default")) is not None and default != []:
        facts.append(f"default: {'yes' if default is True else 'no' if default is False else default}")
    if bounds := _bounds(schema):
        facts.append(bounds)
    said = "; ".join(parts)
    return f"{said}  [{'; '.join(facts)}]".strip() if facts else said


def _bounds(schema: Mapping[str, Any]) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    if schema.get("exclusiveMinimum") is not None:
        return f"above {schema['exclusiveMinimum']:g}" + ("" if most is None else f", at most {most:,g}")
    if least is None and most is None:
        return ""
    if most is None or most >= 2**53 - 1:
        return f"at least {least:g}" if least else ""
    return f"{least if least is not None else ''}..{most:,g}"


def help_of(tool: Tool, parameters: Sequence[Parameter]) -> str:
    """What the command does, and an example."""
    return f"{tool.description}\n\n\b\nExample:\n  {shlex.join(example(tool, parameters))}"


def epilog_of(tool: Tool) -> str:
    """The command's other names, and how it can end."""
    others = f", also {', '.join(tool.commands)}" if tool.commands else ""
    lines = ["\b", f"Tool {tool.name}; command event {tool.command}{others}."]
    if tool.effects == "destroys":
        lines.append("It ends or deletes something: on a terminal it asks first, unless --yes is given.")
    if tool.waits:
        lines.append("Exit code 6 if what it waited for is not all there, or did not all go well.")
    return "\n".join(lines)


def example(tool: Tool, parameters: Sequence[Parameter]) -> list[str]:
    """A command line that the command takes, word by word."""
    group, _, rest = tool.command.partition(":")
    words = ["ksi-mcp", group, *([rest.replace("_", "-")] if rest else [])]
    placed = sorted((each for each in parameters if each.place is not None), key=lambda each: each.place or 0)
    for each in placed:
        words += _written(each, _sample(tool, each))
    more = _SHOWN_TOO.get(tool.name, {})
    for each in parameters:
        if each.place is None and (each.required or each.name in more):
            for value in _written(each, more.get(each.name, _sample(tool, each))):
                words += [each.option, value]
    return words


def _sample(tool: Tool, parameter: Parameter) -> Any:
    found = _BETTER.get((tool.name, parameter.name), _SAMPLES.get(parameter.name))
    if found is None:
        found = parameter.choices[0] if parameter.choices else {"integer": 1, "number": 1}.get(parameter.kinds[0], "x")
    return found


def _written(parameter: Parameter, value: Any) -> list[str]:
    """A value as the words that mean it."""
    if isinstance(value, dict) and "string" not in parameter.kinds[:1]:
        return [f"{key}={each if isinstance(each, str) else json.dumps(each)}" for key, each in value.items()]
    if isinstance(value, list):
        return [each if isinstance(each, str) else json.dumps(each) for each in value]
    return [value if isinstance(value, str) else json.dumps(value)]
