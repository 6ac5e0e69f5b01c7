"""Bundles: compositions leave in them, and come in by way of a quarantine."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field

from ksi_mcp.compositions.archive import MAX_BUNDLE_BYTES
from ksi_mcp.compositions.federation import Federation, Incoming
from ksi_mcp.compositions.importers.reading import Step
from ksi_mcp.compositions.manifest import Entry, to_bytes
from ksi_mcp.compositions.review import Reviewed
from ksi_mcp.errors import Invalid, Refused
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import View, tool

SourceFormat = Literal["ksi_mcp", "ksi", "llm_orc", "claude_agents"]

MAX_INLINE_BYTES = 20_000
MAX_SHOWN = 200
PROGRESS_FILES = 25


class ExportView(View):
    """The bundle that was written. `missing`: referred to, but not in the library."""

    bundle: str
    file: str
    sha256: str
    size: int
    compositions: list[str]
    dependencies: list[str] | None = None
    ancestors: list[str] | None = None
    runs: int
    requires: list[str] | None = None
    missing: list[str] | None = None
    signed: bool | None = None
    base64: str | None = None


class IncomingView(View):
    """One composition of a bundle. `standing`: new, identical to what is here, or differs (its name is taken)."""

    name: str
    becomes: str | None = None
    type: str
    version: str
    description: str | None = None
    role: str
    hash: str
    standing: str
    layer: str | None = None
    asks: dict[str, Any] | None = None
    differences: list[str] | None = None
    warnings: list[str] | None = None


class WaitingView(View):
    """A bundle in quarantine."""

    bundle: str
    made_at: str
    made_by: str
    source: str | None = None
    compositions: list[str]


class ImportView(View):
    """What a bundle holds and where it is by now: quarantined, imported, present (all of it was here), discarded."""

    state: str
    bundle: str | None = None
    made_at: str | None = None
    made_by: str | None = None
    source: str | None = None
    signed: str | None = None
    compositions: list[IncomingView] | None = None
    more: int | None = None
    ancestors: int | None = None
    claimed_runs: int | None = None
    placed: list[str] | None = None
    warnings: list[str] | None = None
    files: list[dict[str, Any]] | None = None
    unread: list[dict[str, Any]] | None = None
    skipped: int | None = None
    waiting: list[WaitingView] | None = None
    hint: str | None = None


def _federation(call: Call) -> Federation:
    # Not among the services: it has no state, and who neither exports nor imports need not load all of it.
    return Federation(call.svc.journal, call.svc.library, home=call.svc.data_folder)


@tool(
    "composition_export", needs="compositions", effects="writes", title="Export compositions", aliases={"name": "names"}
)
async def composition_export(
    call: Call,
    *,
    names: Annotated[list[str] | str, Field(description="one, or several")],
    with_dependencies: Annotated[bool, Field(description="also what they extend, include and spawn")] = True,
    with_runs: Annotated[bool, Field(description="also what came of their runs")] = True,
    inline: Annotated[bool, Field(description=f"also as base64, if under {MAX_INLINE_BYTES:,} bytes")] = False,
    sign_with: Annotated[str | None, Field(description="operator: file of an Ed25519 private key (PEM)")] = None,
) -> ExportView:
    """Write compositions, their ancestors and run statistics into one bundle file, in the data folder's exports/."""
    if sign_with is not None and call.ctx.actor.kind != "operator":
        raise Refused("only the operator may name files of this machine", hint="export without sign_with")
    federation = _federation(call)
    made = await federation.export(
        call.ctx,
        [names] if isinstance(names, str) else names,
        with_dependencies=with_dependencies,
        with_runs=with_runs,
        sign_with=None if sign_with is None else federation.place(sign_with),
    )
    bundle = made.bundle
    data = to_bytes(bundle)
    saved = await federation.save(bundle)

    def of(role: str) -> list[str]:
        return [_shown(item.entry) for item in bundle.items if item.entry.role == role]

    view = ExportView(
        bundle=bundle.id,
        file=f"{saved.parent.name}/{saved.name}",
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        compositions=of("composition"),
        dependencies=of("dependency") or None,
        ancestors=of("ancestor") or None,
        runs=len(bundle.runs),
        requires=[f"{name}@{hash[:12]}" for name, hash in bundle.requires] or None,
        missing=list(made.missing) or None,
        signed=bundle.signature is not None or None,
        base64=base64.b64encode(data).decode() if inline and len(data) <= MAX_INLINE_BYTES else None,
    )
    return await call.commit(lambda _tx: view)


@tool(
    "composition_import", needs="operator", effects="writes", title="Import compositions", aliases={"id": "bundle_id"}
)
async def composition_import(
    call: Call,
    *,
    path: Annotated[
        str | None, Field(description="bundle, file, folder or git checkout; relative: in the data folder")
    ] = None,
    bundle: Annotated[str | None, Field(description="a bundle in base64", max_length=2 * MAX_BUNDLE_BYTES)] = None,
    bundle_id: Annotated[str | None, Field(description="one in quarantine")] = None,
    allow: Annotated[
        bool | list[str] | None, Field(description="true: place all of it; names: these; false: throw it away")
    ] = None,
    prefix: Annotated[str | None, Field(description="for names that are taken, e.g. 'acme_'")] = None,
    format: Annotated[SourceFormat | None, Field(description="of files; else each is looked at")] = None,
) -> ImportView:
    """Check a bundle, or files of KSI, llm-orc or .claude/agents, and keep them in quarantine until they are allowed.

    The answer says of each what it is, asks for and conflicts with. Then bundle_id and allow place it in your library.
    Without arguments: what waits.
    """
    federation = _federation(call)
    given = [each for each in (path, bundle, bundle_id) if each is not None]
    if len(given) > 1:
        raise Invalid("give one of path, bundle and bundle_id")
    if not given:
        if allow is not None or prefix is not None:
            raise Invalid("allow and prefix need a bundle", hint="give bundle_id, or path")
        return await _waiting(federation)
    if bundle_id is not None and allow is False:
        await federation.discard(bundle_id)
        return ImportView(state="discarded", bundle=bundle_id)
    if bundle_id is not None:
        incoming = await federation.look(bundle_id, prefix=prefix)
    else:
        source = _decoded(bundle) if bundle is not None else federation.place(path or "")
        incoming = await federation.receive(call.ctx, source, format=format, step=_step(call))
    if allow is not None and allow is not False and incoming.state == "quarantined":
        incoming = await federation.allow(
            call.ctx,
            incoming.bundle.id,
            names=None if allow is True else allow,
            prefix=prefix,
            commit=call.committer(lambda _: ImportView(state="imported", bundle=incoming.bundle.id)),
        )
    return _view(incoming)


async def _waiting(federation: Federation) -> ImportView:
    held = await federation.waiting()
    return ImportView(
        state="waiting",
        waiting=[
            WaitingView(
                bundle=each.bundle.id,
                made_at=each.bundle.stamp.at,
                made_by=each.bundle.stamp.by,
                source=each.bundle.stamp.source,
                compositions=[item.entry.name for item in each.bundle.placed()][:MAX_SHOWN],
            )
            for each in held
        ],
    )


def _view(incoming: Incoming) -> ImportView:
    bundle, notes = incoming.bundle, incoming.notes
    hint = None
    if incoming.state == "quarantined":
        taken = any(each.standing == "differs" for each in incoming.reviewed)
        hint = f"composition_import(bundle_id={bundle.id!r}, allow=true{', prefix=...' if taken else ''}) places it"
    files = [each for each in notes.get("files", ()) if "mapped" in each or "without_effect" in each]
    return ImportView(
        state=incoming.state,
        bundle=bundle.id,
        made_at=bundle.stamp.at,
        made_by=bundle.stamp.by,
        source=bundle.stamp.source,
        signed=incoming.signed,
        compositions=[_one(each) for each in incoming.reviewed[:MAX_SHOWN]],
        more=max(0, len(incoming.reviewed) - MAX_SHOWN) or None,
        ancestors=len(bundle.ancestors()) or None,
        claimed_runs=len(bundle.runs) or None,
        placed=list(incoming.placed) or None,
        warnings=list(incoming.warnings) or None,
        files=files[:MAX_SHOWN] or None,
        unread=notes.get("unread", [])[:MAX_SHOWN] or None,
        skipped=len(notes.get("skipped", ())) or None,
        hint=hint,
    )


def _one(each: Reviewed) -> IncomingView:
    entry = each.item.entry
    return IncomingView(
        name=entry.name,
        becomes=each.composition.name if each.composition.name != entry.name else None,
        type=entry.type,
        version=entry.version,
        description=each.composition.description[:300] or None,
        role=entry.role,
        hash=entry.hash[:12],
        standing=each.standing,
        layer=each.layer,
        asks=each.asks.as_document() or None,
        differences=list(each.differences) or None,
        warnings=list(each.warnings) or None,
    )


def _shown(entry: Entry) -> str:
    return f"{entry.name}@{entry.hash[:12]}"


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid("`bundle` is not base64", hint="give the path of the bundle's file instead") from None


def _step(call: Call) -> Step:
    """Tells the caller how far the reading of a folder is, from the thread that reads."""
    loop = asyncio.get_running_loop()

    def step(done: int, total: int) -> None:
        if total > 1 and (done % PROGRESS_FILES == 0 or done == total):
            asyncio.run_coroutine_threadsafe(call.progress(done, total, f"{done} of {total} files read"), loop)

    return step


TOOLS = (composition_export, composition_import)
