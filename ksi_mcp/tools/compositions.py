"""The library: read, fork, check."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ksi_mcp.compositions.records import CompositionRecord
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.measured import MeasuredView, measured
from ksi_mcp.tools.tool import View, tool

MAX_PROBLEMS = 200


class CompositionView(View):
    """A composition whole. With resolve, parents are merged in and the included texts come along."""

    name: str
    type: str
    version: str
    hash: str
    layer: str | None = None
    document: dict[str, Any]
    includes: dict[str, str] | None = None
    warnings: list[str] | None = None
    measured: MeasuredView | None = None


class ForkView(View):
    """The new composition, or what it would be."""

    name: str
    version: str | None = None
    hash: str | None = None
    parent: str
    dry_run: bool | None = None
    document: dict[str, Any] | None = None


class CreatedView(View):
    """The new composition."""

    name: str
    hash: str | None = None


class ValidView(View):
    """Whether a document could be used, and what is wrong with it."""

    valid: bool
    problem: str | None = None
    problems: list[str] | None = None
    warnings: list[str] | None = None


@tool("composition_get", needs="base", effects="reads", title="Read a composition", idempotent=True)
async def composition_get(
    call: Call,
    *,
    name: Annotated[str, Field(description="name, or name@hash")],
    resolve: Annotated[bool, Field(description="merge parents, bring included texts")] = False,
) -> CompositionView:
    """Return one composition whole. A pattern's orchestration_logic.strategy is for you to read and carry out."""
    record = await call.svc.library.get(name, resolve=resolve)
    found = await measured(call, record)
    return _view(record).model_copy(update={"measured": found if found.as_json() else None})


@tool(
    "composition_fork",
    needs="compositions",
    effects="writes",
    title="Fork a composition",
    aliases={"parent_name": "parent", "new_name": "name"},
)
async def composition_fork(
    call: Call,
    *,
    parent: str,
    name: str,
    reason: str,
    modifications: Annotated[
        dict[str, Any] | None, Field(description="dotted path -> value, e.g. agents.judge.prompt")
    ] = None,
    dry_run: bool = False,
) -> ForkView:
    """Fork a pattern or profile: a changed copy in your library, with its lineage.

    Running agents keep what they have.
    """
    record = await call.svc.library.fork(
        call.ctx,
        parent,
        name,
        reason,
        modifications,
        dry_run=dry_run,
        commit=call.committer(lambda _: ForkView(name=name, parent=parent)),
    )
    made = record.composition
    return ForkView(
        name=made.name,
        version=made.version,
        hash=made.hash[:12],
        parent=parent,
        dry_run=dry_run or None,
        document=made.document if dry_run else None,
    )


@tool("composition_create", needs="compositions", effects="writes", title="Write a new composition")
async def composition_create(
    call: Call, *, document: Annotated[dict[str, Any] | str, Field(description="the document, or its YAML")]
) -> CreatedView:
    """Write a new composition into your library; the name must be free. composition_validate checks without writing."""
    record = await call.svc.library.create(
        call.ctx, document, commit=call.committer(lambda _: CreatedView(name=_name_of(document)))
    )
    return CreatedView(name=record.composition.name, hash=record.composition.hash[:12])


@tool("composition_validate", needs="base", effects="reads", title="Check a composition", idempotent=True)
async def composition_validate(
    call: Call, *, document: Annotated[dict[str, Any] | str, Field(description="the document, or its YAML")]
) -> ValidView:
    """Say whether a document could be used, and everything that is wrong with it. Writes nothing."""
    found = await call.svc.library.validate(document)
    return ValidView(
        valid=found.valid,
        problem=found.problem,
        problems=list(found.problems)[:MAX_PROBLEMS] or None,
        warnings=list(found.warnings)[:MAX_PROBLEMS] or None,
    )


def _view(record: CompositionRecord) -> CompositionView:
    made, resolved = record.composition, record.resolved
    return CompositionView(
        name=made.name,
        type=made.type,
        version=made.version,
        hash=(resolved.hash if resolved is not None else made.hash)[:12],
        layer=record.layer,
        document=resolved.document if resolved is not None else made.document,
        includes=resolved.includes or None if resolved is not None else None,
        warnings=list(resolved.warnings) or None if resolved is not None else None,
    )


def _name_of(document: dict[str, Any] | str) -> str:
    return str(document.get("name", "")) if isinstance(document, dict) else "the composition"


TOOLS = (composition_get, composition_fork, composition_create, composition_validate)
