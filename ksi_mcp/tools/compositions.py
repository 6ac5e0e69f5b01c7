"""The library: find, read, fork, check."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ksi_mcp.compositions.records import CompositionRecord
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import View, tool

CompositionKind = Literal["orchestration", "ensemble", "agent", "component", "evaluation"]


class HeadView(View):
    """A composition in a list."""

    name: str
    type: str
    version: str
    description: str
    tags: list[str]
    hash: str
    layer: str


class DiscoverView(View):
    """Best matches first; `problems` are files that could not be loaded."""

    compositions: list[HeadView]
    total: int
    cursor: str | None = None
    problems: list[str] | None = None


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
    warnings: list[str] | None = None


@tool("composition_discover", needs="base", effects="reads", title="Find patterns and profiles", idempotent=True)
async def composition_discover(
    call: Call,
    *,
    type: CompositionKind | None = None,
    tags: Annotated[list[str] | None, Field(max_length=20)] = None,
    text: Annotated[str | None, Field(description="words in name, description or tags", max_length=500)] = None,
    metadata_filter: Annotated[
        dict[str, Any] | None, Field(description="e.g. {'performance.runs': {'>': 5}}; a list: contains all")
    ] = None,
    limit: Annotated[int, Field(ge=1, le=100)] = 20,
    cursor: str | None = None,
) -> DiscoverView:
    """Find compositions: type orchestration = patterns to start, agent = profiles to spawn. Best matches first.

    Then composition_get for the whole text of one.
    """
    page = await call.svc.library.discover(
        type=type, tags=tags or (), text=text, metadata=metadata_filter, limit=limit, cursor=cursor
    )
    report = await call.svc.library.refresh() if cursor is None else None
    problems = [f"{problem.layer}/{problem.path}: {problem.message}" for problem in report.problems] if report else []
    return DiscoverView(
        compositions=[
            HeadView(
                name=head.name,
                type=head.type,
                version=head.version,
                description=head.description,
                tags=list(head.tags),
                hash=head.hash[:12],
                layer=head.layer,
            )
            for head in page.items
        ],
        total=page.total,
        cursor=page.cursor,
        problems=problems[:20] or None,
    )


@tool("composition_get", needs="base", effects="reads", title="Read a composition", idempotent=True)
async def composition_get(
    call: Call,
    *,
    name: Annotated[str, Field(description="name, or name@hash")],
    resolve: Annotated[bool, Field(description="merge parents, bring included texts")] = False,
) -> CompositionView:
    """Return one composition whole. A pattern's orchestration_logic.strategy is for you to read and carry out."""
    return _view(await call.svc.library.get(name, resolve=resolve))


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
    """Write a changed copy of a composition into your library, with its lineage. Running agents keep what they have."""
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
    return ValidView(valid=found.valid, problem=found.problem, warnings=list(found.warnings) or None)


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


TOOLS = (composition_discover, composition_get, composition_fork, composition_create, composition_validate)
