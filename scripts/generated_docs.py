"""What other files take from the code: docs/tools.md, the settings in docs/operations.md, and packaging/*.json.

`scripts/generate-docs` writes them. The same code gives the same bytes, on every machine.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from ksi_mcp import __version__
from ksi_mcp.cli.twin.commands import words_of
from ksi_mcp.cli.twin.parameter_words import words_for
from ksi_mcp.config import Config
from ksi_mcp.tools.catalog import ALL_TOOLS, DEFAULT_TOOLS
from ksi_mcp.tools.tool import Tool

ROOT: Final = Path(__file__).resolve().parent.parent
TOOLS: Final = ROOT / "docs" / "tools.md"
OPERATIONS: Final = ROOT / "docs" / "operations.md"
MANIFEST: Final = ROOT / "packaging" / "mcpb" / "manifest.json"
SERVER: Final = ROOT / "packaging" / "server.json"
BEGIN, END = "<!-- settings: written by scripts/generate-docs -->", "<!-- settings: end -->"

GROUPS: Final = {
    "agent": "who exists, and what they are told",
    "turn": "requests that wait",
    "completion": "single turns: submit, look, answer, cancel",
    "event": "what happened, and making something happen",
    "routing": "who hears what",
    "composition": "patterns and profiles: find, fork, compare, share",
    "decision": "what was decided, and how it turned out",
    "orchestration": "runs of a pattern",
    "checkpoint": "a run as it stood",
    "budget": "what may be spent",
    "usage": "what was spent, and on what",
    "monitor": "figures of what is going on",
    "name": "names of agents, runs, rules and compositions",
    "help": "all of this, from within",
}
"""The first word of a tool's name and what its group is about, in the order of the page. Others follow, by name."""

EFFECTS: Final = {"reads": "reads", "writes": "writes", "destroys": "**destroys**"}
EXACT: Final = 9_007_199_254_740_991
"""The largest whole number that JSON keeps exactly: a limit that nobody means to reach."""

_KINDS: Final = {"string": "text", "array": "list"}
INTRO = """\
# Tools

Every operation of the server, {count} in all, from their declarations; {shown} of them (**listed**) are shown to a
client unless `ksi-mcp serve --tools full` shows all. The others can be called all the same: by name, as a command
(`event_emit(event="routing:apply", data={{...}})`), or on the command line. `help` says the same from within.

How to read it:

* **needs**: the capability that an agent must hold. A client and the command line are the *operator* and hold all of
  them; `operator` is never given to an agent. A read-only token may call what *reads*.
* *reads* changes nothing; *writes* does; ***destroys*** ends or deletes something that cannot be brought back.
* *again is the same*: a second call with the same arguments changes nothing more.
* *waits*: the call may take as long as its time limit says; running out of time is not an error.
* **also**: other names that are understood, for patterns that were written for another system.
* An unknown parameter is an error, and all that is wrong is said at once. *required* has no default; `–` means that it
  may be left out.
* On the command line a parameter is an option: `source_pattern` is `--source-pattern`. What a tool is mostly about can
  be given as a word; `--help` says which, with an example.

## Index
"""


# ------------------------------------------------------------------------------------------ tools


def tools_page() -> str:
    """docs/tools.md, whole."""
    groups = _groups()
    shapes: dict[str, dict[str, Any]] = {}
    parts = [INTRO.format(count=len(ALL_TOOLS), shown=len(DEFAULT_TOOLS))]
    for group, tools in groups.items():
        title = f"**[{group}](#{group})**" + (f": {GROUPS[group]}" if group in GROUPS else "")
        rows = [f"| {_link(tool.name)} | {_cell(tool.title)} | {tool.effects} | {_listed(tool)}|" for tool in tools]
        parts.append("\n".join([title, "", "| tool | does | effect | |", "|---|---|---|---|", *rows, ""]))
    parts.append("Arguments with an inside of their own are under [shapes](#shapes).\n")
    for group, tools in groups.items():
        parts.append(f"## {group}\n")
        parts += [_section(tool, shapes) for tool in tools]
    parts.append(_shapes(shapes))
    return "\n".join(parts)


def _groups() -> dict[str, list[Tool]]:
    found: dict[str, list[Tool]] = {}
    for tool in ALL_TOOLS:
        found.setdefault(tool.name.split("_")[0], []).append(tool)
    order = list(GROUPS)
    key = lambda group: (order.index(group) if group in order else len(order), group)  # noqa: E731
    return {group: found[group] for group in sorted(found, key=key)}


def _section(tool: Tool, shapes: dict[str, dict[str, Any]]) -> str:
    schema = tool.model().model_json_schema()
    shapes |= schema.get("$defs", {})
    said = [f"Needs `{tool.needs}`", EFFECTS[tool.effects]]
    said += ["again is the same"] if tool.idempotent and tool.effects != "reads" else []
    said += ["waits"] if tool.waits else []
    said += ["**listed**"] if tool.name in DEFAULT_TOOLS else []
    names = [f"command `{tool.command}`"]
    names += ["also " + ", ".join(f"`{name}`" for name in tool.commands)] if tool.commands else []
    lines = [
        f"### {tool.name}",
        "",
        f"*{tool.title}.* {_prose(tool.description)}",
        "",
        " · ".join(said) + "<br>" + " · ".join([*names, f"`{command_line(tool)}`"]),
        "",
    ]
    if schema.get("properties"):
        lines += _table(schema, of=tool.name, head="parameter")
    else:
        lines.append("It takes no parameters.")
    if tool.aliases:
        lines += ["", "Also: " + ", ".join(f"`{other}` for `{ours}`" for other, ours in tool.aliases.items()) + "."]
    return "\n".join([*lines, ""])


def command_line(tool: Tool) -> str:
    """How a tool is called in a terminal."""
    return " ".join(("ksi-mcp", *filter(None, words_of(tool))))


def _shapes(shapes: Mapping[str, dict[str, Any]]) -> str:
    lines = ["## Shapes", "", "An unknown key is an error in these, too.", ""]
    for name in sorted(shapes):
        lines += [f"### {name}", ""]
        if said := shapes[name].get("description"):
            lines += [_prose(said), ""]
        lines += [*_table(shapes[name], of=name, head="key"), ""]
    return "\n".join(lines)


def _table(schema: Mapping[str, Any], *, of: str, head: str) -> list[str]:
    required = set(schema.get("required", ()))
    lines = [f"| {head} | type | default | |", "|---|---|---|---|"]
    for name, given in schema.get("properties", {}).items():
        default = "*required*" if name in required else _default(given)
        said = [_cell(words)] if (words := words_for(of, name, given)) else []
        said += [bounds] if (bounds := "; ".join(_bounds(given))) else []
        lines.append(f"| `{name}` | {_type(given)} | {default} | {'; '.join(said)} |".replace("|  |", "| |"))
    return lines


def _choices(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a value may be, without the null that stands for leaving it out."""
    return [choice for choice in given.get("anyOf", [given]) if choice.get("type") != "null"]


def _type(given: Mapping[str, Any]) -> str:
    return " or ".join(dict.fromkeys(_one_type(choice) for choice in _choices(given)))


def _one_type(given: Mapping[str, Any]) -> str:
    if "$ref" in given:
        name = given["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in given:
        return _type(given)
    match given.get("type"):
        case "array":
            return f"list of {_type(given['items'])}" if given.get("items") else "list"
        case "object" if isinstance(given.get("additionalProperties"), dict):
            return f"object of {_type(given['additionalProperties'])}"
        case None:
            return "text" if "enum" in given or "const" in given else "anything"
        case list() as kinds:
            return " or ".join(_KINDS.get(kind, kind) for kind in kinds)
        case kind:
            return _KINDS.get(str(kind), str(kind))


def _default(given: Mapping[str, Any]) -> str:
    value = given.get("default")
    return "–" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _bounds(given: Mapping[str, Any]) -> Iterator[str]:
    for choice in _choices(given):
        if "enum" in choice:
            yield ", ".join(f"`{value}`" for value in choice["enum"])
        if "const" in choice:
            yield f"`{choice['const']}`"
        yield from _range(choice)
        yield from _length(choice, "minLength", "maxLength", "characters")
        yield from _length(choice, "minItems", "maxItems", "items")
        if isinstance(choice.get("items"), dict):
            yield from _bounds({key: value for key, value in choice["items"].items() if key != "description"})


def _range(given: Mapping[str, Any]) -> Iterator[str]:
    least, most = given.get("minimum"), given.get("maximum")
    above, below = given.get("exclusiveMinimum"), given.get("exclusiveMaximum")
    most = None if most == EXACT else most
    if least is not None and most is not None:
        yield f"{least:,g} to {_number(most)}"
    elif above is not None and most is not None:
        yield f"more than {above:,g}, at most {_number(most)}"
    elif least is not None:
        yield f"at least {least:,g}"
    elif most is not None:
        yield f"at most {_number(most)}"
    elif above is not None:
        yield f"more than {above:,g}"
    if below is not None:
        yield f"less than {below:,g}"


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:,}"


def _length(given: Mapping[str, Any], least: str, most: str, what: str) -> Iterator[str]:
    low, high = given.get(least), given.get(most)
    if low and high:
        yield f"{low:,} to {high:,} {what}"
    elif high:
        yield f"at most {high:,} {what}"
    elif low:
        yield f"at least {low:,} {what}"


def _link(name: str) -> str:
    return f"[`{name}`](#{name})"


def _listed(tool: Tool) -> str:
    return "listed " if tool.name in DEFAULT_TOOLS else ""


def _prose(text: str) -> str:
    """A docstring as Markdown: what looks like HTML or emphasis there is meant as it is."""
    return re.sub(r"[<*]", r"\\\g<0>", text) if "`" not in text else _outside_code(text)


def _outside_code(text: str) -> str:
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else re.sub(r"[<*]", r"\\\g<0>", piece) for piece in pieces)


def _cell(text: str) -> str:
    return _prose(" ".join(text.split())).replace("|", "\\|")


# --------------------------------------------------------------------------------------- settings


def settings_table() -> str:
    """Every key of config.yaml with its default and meaning."""
    lines = ["| key | default | |", "|---|---|---|"]
    for key, default, said in _settings(Config, ""):
        lines.append(f"| `{key}` | `{default}` | {said} |".replace("|  |", "| |"))
    return "\n".join(lines)


def _settings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _settings(inner, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        given = model.model_json_schema()["properties"][name]
        said = [_cell(field.description)] if field.description else []
        said += _bounds(given)
        yield prefix + name, json.dumps(default, default=list, ensure_ascii=False), "; ".join(said)
        for of in _sections_of(inner):
            yield from _settings(of, f"{prefix}{name}.NAME.")


def _sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The model of the values, where a setting is a mapping of sections by name."""
    inner = [each for each in getattr(annotation, "__args__", ()) if isinstance(each, type)]
    return [each for each in inner if issubclass(each, BaseModel)]


def operations_page(text: str) -> str:
    """docs/operations.md with its settings as they are in the code.

    Raises:
        SystemExit: the page has lost its marks.
    """
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise SystemExit(f"docs/operations.md has lost its marks: {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{settings_table()}\n{END}{after}"


# -------------------------------------------------------------------------------------- packaging


def manifest(text: str) -> str:
    """The manifest of the bundle with the version and the listed tools of the code."""
    found = json.loads(text)
    titles = {tool.name: tool.title for tool in ALL_TOOLS}
    found["version"] = __version__
    found["tools"] = [{"name": name, "description": titles[name]} for name in DEFAULT_TOOLS]
    return _json(found)


def registry_entry(text: str) -> str:
    """What the MCP registry is told, with the version of the code."""
    found = json.loads(text)
    found["version"] = __version__
    for package in found["packages"]:
        package["version"] = __version__
    return _json(found)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def outdated() -> dict[Path, str]:
    """The files that are not as the code has it, and what they should be."""
    found = {
        TOOLS: tools_page(),
        OPERATIONS: operations_page(OPERATIONS.read_text("utf-8")),
        MANIFEST: manifest(MANIFEST.read_text("utf-8")),
        SERVER: registry_entry(SERVER.read_text("utf-8")),
    }
    return {page: text for page, text in found.items() if not page.exists() or page.read_text("utf-8") != text}


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` say which are not up to date."""
    pages = outdated()
    for page, text in pages.items():
        name = page.relative_to(ROOT)
        if "--check" in arguments:
            print(f"{name} is not as the code has it; run: make docs")
        else:
            page.write_text(text, "utf-8")
            print(f"wrote {name}")
    return int(bool(pages) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
