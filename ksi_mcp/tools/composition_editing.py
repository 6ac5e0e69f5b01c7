"""Compositions changed in place, and two made into one."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import Field

from ksi_mcp.compositions import editing
from ksi_mcp.compositions.combining import combine_named
from ksi_mcp.compositions.diff import diff
from ksi_mcp.compositions.editing import Revised
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.composition_changes import change_view
from ksi_mcp.tools.tool import View, tool

MAX_CHANGES = 100


class UpdatedView(View):
    """The new version, or with dry_run what it would be: its changes and its document. `changed` false: it is so."""

    name: str
    version: str | None = None
    hash: str | None = None
    previous_hash: str | None = None
    changed: bool | None = None
    changes: list[dict[str, Any]] | None = None
    left_out: int | None = None
    document: dict[str, Any] | None = None
    dry_run: bool | None = None
    warnings: list[str] | None = None


class CombinedView(View):
    """The new pattern; `notes` say what had to be renamed or chosen."""

    name: str
    hash: str | None = None
    notes: list[str] | None = None
    warnings: list[str] | None = None
    document: dict[str, Any] | None = None
    dry_run: bool | None = None


@tool("composition_update", needs="compositions", effects="writes", title="Change a composition in place")
async def composition_update(
    call: Call,
    *,
    name: str,
    modifications: Annotated[
        dict[str, Any] | None, Field(description="dotted path -> value, e.g. agents.judge.prompt")
    ] = None,
    document: Annotated[
        dict[str, Any] | str | None, Field(description="instead: the whole new document, or its YAML")
    ] = None,
    reason: Annotated[str | None, Field(max_length=2_000)] = None,
    expected_hash: Annotated[
        str | None, Field(description="refuse if it is another version by now", max_length=64)
    ] = None,
    dry_run: Annotated[bool, Field(description="show the changes, write nothing")] = False,
) -> UpdatedView:
    """Write the next version of a composition of yours; comments stay, the old version stays readable as name@hash."""
    revised = await editing.update(
        call.svc.library,
        call.ctx,
        name,
        modifications=modifications,
        document=document,
        reason=reason,
        expected_hash=expected_hash,
        dry_run=dry_run,
        commit=call.committer(lambda _: UpdatedView(name=name)),
    )
    return await _updated(revised, dry_run=dry_run)


@tool("composition_combine", needs="compositions", effects="writes", title="Make a pattern of two")
async def composition_combine(
    call: Call, *, a: str, b: str, name: str, dry_run: Annotated[bool, Field(description="write nothing")] = False
) -> CombinedView:
    """Write a pattern with agents, routing, includes and strategies of two. Roles that clash get b's name in front."""
    made = await combine_named(
        call.svc.library,
        call.ctx,
        a,
        b,
        name,
        dry_run=dry_run,
        commit=call.committer(lambda _: CombinedView(name=name)),
    )
    return CombinedView(
        name=name,
        hash=made.composition.hash[:12],
        notes=list(made.notes) or None,
        warnings=list(made.warnings) or None,
        document=made.composition.document if dry_run else None,
        dry_run=dry_run or None,
    )


async def _updated(revised: Revised, *, dry_run: bool) -> UpdatedView:
    before, after = revised.before, revised.composition
    changes = (await asyncio.to_thread(diff, before.document, after.document)).changes if dry_run else ()
    return UpdatedView(
        name=after.name,
        version=after.version,
        hash=after.hash[:12],
        previous_hash=before.hash[:12],
        changed=revised.changed,
        changes=[change_view(change) for change in changes[:MAX_CHANGES]] if dry_run else None,
        left_out=len(changes) - MAX_CHANGES if len(changes) > MAX_CHANGES else None,
        document=after.document if dry_run else None,
        dry_run=dry_run or None,
        warnings=list(revised.warnings) or None,
    )


TOOLS = (composition_update, composition_combine)
