"""The one declaration of an operation: name, typed parameters, needed capability, effect.

The MCP tool, the tool that an agent is given, the command event and the command line all come from it.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ksi_mcp.errors import Invalid

if TYPE_CHECKING:
    from ksi_mcp.permissions import Capability

T = TypeVar("T")

Effects = Literal["reads", "writes", "destroys"]
"""`destroys` ends or deletes something that cannot be brought back."""


class View(BaseModel):
    """A result as it leaves: fields that are None are left out."""

    # Built when the first one is made: there are a hundred kinds, and a start needs none of them.
    model_config = ConfigDict(frozen=True, defer_build=True)

    def as_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return self.model_dump(mode="json", exclude_none=True)

    def as_text(self) -> str | None:
        """The whole result as prose or a picture, where it is one; None: it is data."""
        return None


V = TypeVar("V", bound=View)


class Views(Generic[T, V]):
    """The views of the newest `size` records: a record that is the very same gives the view that it gave before."""

    def __init__(self, make: Callable[[T], V], *, size: int) -> None:
        @lru_cache(maxsize=size)
        def made(same: _Same[T]) -> V:
            return make(same.record)

        self._made = made

    def of(self, records: Sequence[T]) -> list[V]:
        """Their views."""
        return [self._made(_Same(record)) for record in records]


class _Same(Generic[T]):
    """Is equal to what holds the very same record, which lives as long as this does."""

    __slots__ = ("record",)

    def __init__(self, record: T) -> None:
        self.record = record

    def __hash__(self) -> int:
        return id(self.record)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.record is self.record


class Part(BaseModel):
    """A structured argument: unknown keys are refused, as in the arguments themselves."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


Body = Callable[..., Awaitable[View]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """A body that is not loaded yet: its module is, when the tool is first called."""

    module: str
    function: str

    def tool(self) -> Tool:
        """The tool as its module writes it."""
        found: Tool = getattr(importlib.import_module(self.module), self.function)
        return found

    async def load(self) -> None:
        """Load it beside the loop, which has others to serve: some take a tenth of a second."""
        if self.module not in sys.modules:
            await asyncio.to_thread(importlib.import_module, self.module)

    async def __call__(self, *args: Any, **given: Any) -> View:
        """Run it."""
        return await self.tool().body(*args, **given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A declared operation."""

    name: str
    body: Body
    needs: Capability
    effects: Effects
    title: str
    description: str
    waits: bool = False
    idempotent: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of parameters, as published elsewhere, and what they are here."""
    commands: tuple[str, ...] = ()
    """Other names of its command event."""
    convert: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Rewrites published argument shapes into ours, before validation."""
    stated: dict[str, Any] | None = None
    """Its schema, where that was made beforehand."""

    @property
    def command(self) -> str:
        """The command event: `routing_add_rule` is `routing:add_rule`."""
        return self.name.replace("_", ":", 1)

    def model(self) -> type[BaseModel]:
        """The arguments as a pydantic model."""
        return _model_of(self.name, self._written().body)

    def schema(self) -> dict[str, Any]:
        """The arguments as a compact JSON schema: no titles, no `anyOf` with null."""
        return _schema_of(self.name, self.body) if self.stated is None else self.stated

    def pages(self) -> bool:
        """Whether it gives back a page of at most `limit` entries, and a `cursor` to go on from."""
        return self.effects == "reads" and {"limit", "cursor"} <= set(self.schema()["properties"])

    async def load(self) -> None:
        """See that its body is there, before it is asked for what it takes."""
        if isinstance(self.body, Elsewhere):
            await self.body.load()

    def validate(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Check and convert arguments.

        Raises:
            Invalid: an argument is missing, unknown or of the wrong type; all are named at once.
        """
        given = {self.aliases.get(name, name): value for name, value in args.items()}
        if len(given) != len(args):
            meant = [self.aliases.get(name, name) for name in args]
            twice = [name for name, ours in zip(args, meant, strict=True) if meant.count(ours) > 1]
            raise Invalid(f"{self.name}: {' and '.join(map(repr, twice[:4]))} are the same parameter", hint="give one")
        convert = self._written().convert
        if convert is not None:
            given = convert(given)
        try:
            checked = self.model().model_validate(given)
        except ValidationError as failure:
            raise Invalid(_explain(self, failure), hint=self._what_it_takes(failure)) from None
        return {name: getattr(checked, name) for name in type(checked).model_fields}

    def _written(self) -> Tool:
        return self.body.tool() if isinstance(self.body, Elsewhere) else self

    def _what_it_takes(self, failure: ValidationError) -> str:
        """The names there are where one is unknown or missing; a wrong value says itself what it should be."""
        for error in failure.errors(include_url=False):
            if error["type"] not in ("extra_forbidden", "missing"):
                continue
            if len(error["loc"]) > 1:
                fields = _fields_at(self.schema(), error["loc"][:-1])
                if fields:
                    where = ".".join(map(str, error["loc"][:-1]))
                    return f"fields of {where[:80]} are {', '.join(fields)}"
            return f"parameters are {self._signature()}"
        return f"`help` explains {self.name}"

    def _signature(self) -> str:
        schema = self.schema()
        required = set(schema.get("required", ()))
        names = schema.get("properties", {})
        return ", ".join(name if name in required else f"{name}?" for name in names) or "none"


def tool(
    name: str,
    *,
    needs: Capability,
    effects: Effects,
    title: str,
    waits: bool = False,
    idempotent: bool = False,
    aliases: Mapping[str, str] | None = None,
    commands: tuple[str, ...] = (),
    convert: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Callable[[Body], Tool]:
    """Declare the function below as a tool: its docstring is the description, its keywords are the parameters."""

    def declare(body: Body) -> Tool:
        return Tool(
            name=name,
            body=body,
            needs=needs,
            effects=effects,
            title=title,
            description=inspect.cleandoc(body.__doc__ or ""),
            waits=waits,
            idempotent=idempotent,
            aliases=aliases or {},
            commands=commands,
            convert=convert,
        )

    return declare


@cache
def _model_of(name: str, body: Body) -> type[BaseModel]:
    hints = get_type_hints(body, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(body).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
    config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=False)
    model: type[BaseModel] = create_model(f"{name}_arguments", __config__=config, **fields)
    return model


@cache
def _schema_of(name: str, body: Body) -> dict[str, Any]:
    schema = _model_of(name, body).model_json_schema()
    definitions = schema.pop("$defs", {})
    compact: dict[str, Any] = _compact(schema, definitions)
    return compact


def _compact(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_compact(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[1]]
        merged = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
        return _compact(merged, definitions)
    out = {
        key: (
            {name: _compact(sub, definitions) for name, sub in value.items()}
            if key == "properties"
            else _compact(value, definitions)
        )
        for key, value in node.items()
        if not (key == "title" and isinstance(value, str)) and not (key == "default" and value is None)
    }
    if "anyOf" in out:
        real = [choice for choice in out["anyOf"] if choice != {"type": "null"}]
        if len(real) == 1:
            out.pop("anyOf")
            out = {**real[0], **out}
        else:  # as branches: a list of types is legal, but clients with one type a value drop the constraint
            out["anyOf"] = real
    if out.get("additionalProperties") is True:
        del out["additionalProperties"]
    return out


def _fields_at(schema: Mapping[str, Any], path: Sequence[int | str]) -> list[str]:
    """The fields of what is at `path` in a value of that schema; none if it says nothing of them."""
    for part in path:
        schema = schema.get("items", {}) if isinstance(part, int) else schema.get("properties", {}).get(part, {})
    return list(schema.get("properties", ()))


def _explain(declared: Tool, failure: ValidationError) -> str:
    parts: list[str] = []
    for error in failure.errors(include_url=False)[:8]:
        where = ".".join(str(part) for part in error["loc"]) or "arguments"
        if error["type"] == "extra_forbidden":
            parts.append(f"unknown parameter {where[:80]!r}")
        elif error["type"] == "missing":
            parts.append(f"missing parameter {where!r}")
        else:
            shown = repr(error.get("input"))
            parts.append(f"{where}: {error['msg']}, got {shown[:80]}")
    return f"{declared.name}: " + "; ".join(parts)


__all__ = ["Effects", "Field", "Part", "Tool", "View", "tool"]
