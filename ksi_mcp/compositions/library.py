"""The role object of compositions: what an agent or a pattern is made of, and whom it descends from.

Files are the truth. The index follows them (`refresh`), is never asked for what it cannot make
again, and heals whatever a crash left between a file and its row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from ksi_mcp import yamlio
from ksi_mcp.compositions import files, store
from ksi_mcp.compositions.catalog import Catalog
from ksi_mcp.compositions.checking import examine
from ksi_mcp.compositions.files import FileProblem, FoundFile
from ksi_mcp.compositions.finding import Finder, Sieve
from ksi_mcp.compositions.fork import Lineage, forked_document
from ksi_mcp.compositions.granting import refuse_beyond
from ksi_mcp.compositions.model import (
    Composition,
    Layer,
    check_name,
    join_problems,
    shorten,
)
from ksi_mcp.compositions.paging import CompositionPage, Wanted, is_alike
from ksi_mcp.compositions.planning import Plan, loaded, planned, refuse_taken
from ksi_mcp.compositions.records import Commit, CompositionRecord, RefreshReport, Validation
from ksi_mcp.compositions.resolve import Resolved, resolve
from ksi_mcp.compositions.select import Selection
from ksi_mcp.compositions.store import Indexed
from ksi_mcp.db import Tx
from ksi_mcp.db.database import Work
from ksi_mcp.errors import Conflict, Invalid, KsiError, NotFound
from ksi_mcp.events.journal import Journal
from ksi_mcp.permissions import Context

T = TypeVar("T")

MAX_REASON_CHARS: Final = 2_000
FRESH_S: Final = 1.0
"""How long the folders are taken to be as they were last seen. Own writes are indexed at once."""


class Library:
    """Compositions in layers: the built-in ones, the user's, and the project's, highest last."""

    def __init__(self, journal: Journal, *, builtin: Path, user: Path | None, project: Path | None) -> None:
        roots: list[tuple[Layer, Path | None]] = [("builtin", builtin), ("user", user), ("project", project)]
        self._roots: dict[Layer, Path] = {layer: root for layer, root in roots if root is not None}
        self._journal = journal
        self._refreshing = asyncio.Lock()
        self._refreshed_s: float | None = None
        self.catalog = Catalog()
        self._finder = Finder(journal, self.catalog)
        self.problems: tuple[FileProblem, ...] = ()
        """What the last look at the folders found wrong."""
        self._bad: dict[tuple[Layer, str], tuple[FoundFile, str]] = {}

    @property
    def roots(self) -> dict[Layer, Path]:
        """The folders of the layers, lowest first."""
        return dict(self._roots)

    @property
    def journal(self) -> Journal:
        """Where what the library does is written down."""
        return self._journal

    def writable(self) -> tuple[Layer, Path]:
        """The layer that is written, and its folder.

        Raises:
            Invalid: there is none.
        """
        layer = self._must_be_writable()
        return layer, self._roots[layer]

    @property
    def decisions_root(self) -> Path | None:
        """The folder of decision logs in the writable layer, if there is one."""
        layer = self._writable()
        return self._roots[layer] / files.DECISIONS_FOLDER if layer else None

    # ------------------------------------------------------------------------------------ the index

    async def refresh(self) -> RefreshReport:
        """Bring the index in line with the files: new, changed and gone ones. Bad files are reported."""
        async with self._refreshing:
            known = await self._journal.read(store.files)
            changed, gone, problems, total = await asyncio.to_thread(self._look, known)

            def write(tx: Tx) -> None:
                for layer, path in gone:
                    store.drop(tx, layer, path)
                for layer, file, composition in changed:
                    store.put(tx, layer, file, composition)

            if changed or gone:
                await self._journal.commit(write)
            self._refreshed_s = self._journal.clock.monotonic_s()
            self.problems = tuple(problems)
            return RefreshReport(indexed=len(changed), removed=len(gone), total=total, problems=tuple(problems))

    async def get(self, name: str, *, resolve: bool = False) -> CompositionRecord:
        """The composition of that name, or `name@version` or `name@hash` (at least 6 characters).

        Raises:
            NotFound: there is none; with `resolve` also what resolving finds wrong, but for missing variables.
        """
        await self.fresh()
        found = await self._journal.read(lambda tx: self.found(tx, name))
        layer = found.layer if found.path else None
        resolved = await self._journal.read(lambda tx: _resolved(tx, found, {}, lenient=True)) if resolve else None
        return CompositionRecord(composition=found.composition, layer=layer, resolved=resolved)

    async def resolve(self, name: str, vars: dict[str, Any] | None = None) -> Resolved:
        """Everything a run needs: parents merged, agents' prompts filled in.

        Raises:
            NotFound: it or something it links to is missing.
            Invalid: a circle, problems of structure, or variables that were not given, all together.
        """
        await self.fresh()
        return await self._journal.read(lambda tx: _resolved(tx, self.found(tx, name), vars or {}, lenient=False))

    def remember(self, tx: Tx, resolved: Resolved) -> None:
        """Keep this version, and those its agents come from, retrievable by hash for good."""
        store.remember(tx, hash=resolved.hash, name=resolved.name, document=resolved.document)
        for used in resolved.used:
            store.remember(tx, hash=used.hash, name=used.name, document=used.document)

    async def discover(
        self,
        *,
        type: str | None = None,
        tags: Sequence[str] = (),
        text: str | None = None,
        sieve: Sieve | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> CompositionPage:
        """Compositions of a type that have all `tags` and all words of `text` (in name, description or tags)."""
        await self.fresh()
        wanted = Wanted(type=type, tags=tuple(tags), text=text or "")
        return await self._finder.discover(wanted, sieve or Sieve(), limit=limit, cursor=cursor)

    async def select(
        self, task: str, requirements: Mapping[str, Any] | None = None, *, type: str | None = None, limit: int = 5
    ) -> Selection:
        """What to take for a task, best first with reasons, or that none fits; see `select`."""
        await self.fresh()
        return await self._finder.select(task, requirements, type=type, limit=limit)

    async def validate(self, document: dict[str, Any] | str) -> Validation:
        """Whether a document, or YAML text of one, could be used as it is. Writes nothing."""
        await self.fresh()
        try:
            plain = await asyncio.to_thread(loaded, document)
        except KsiError as error:
            return Validation(
                valid=False, problem=error.text(), warnings=(), composition=None, problems=(error.text(),)
            )
        found = await self._journal.read(lambda tx: examine(plain, store.lookup_in(tx)))
        return Validation(
            valid=found.composition is not None,
            problem=f"the composition: {join_problems(list(found.problems))}" if found.problems else None,
            warnings=found.warnings,
            composition=found.composition,
            problems=tuple(str(problem) for problem in found.problems),
        )

    # -------------------------------------------------------------------------------------- writing

    async def create(
        self,
        ctx: Context,
        document: dict[str, Any] | str,
        *,
        dry_run: bool = False,
        commit: Commit | None = None,
        made_of: Sequence[Composition] = (),
    ) -> CompositionRecord:
        """Write a new composition to the writable layer.

        What a crash left without its row is completed by repeating the call.

        Raises:
            Conflict: the name is taken in any layer; Invalid, NotFound: it could not be used.
        """
        layer = self._must_be_writable()
        await self.fresh()
        plain = await asyncio.to_thread(loaded, document)
        plan = await self._journal.read(lambda tx: planned(tx, plain))
        await self._journal.read(lambda tx: refuse_taken(tx, plan.composition.name, (layer, plan.path)))
        await self._journal.read(lambda tx: refuse_beyond(tx, ctx, plan.composition, *made_of))
        if not dry_run:
            try:
                await asyncio.to_thread(files.create_file, self._roots[layer], plan.path, plan.text)
            except Conflict:
                if await self._unreported(layer, plan, "composition:created") != plan.text:
                    raise
            data = {"type": plan.composition.type, "version": plan.composition.version}
            await self.index(ctx, layer, plan, event=("composition:created", data), commit=commit)
        return CompositionRecord(composition=plan.composition, layer=layer)

    async def fork(
        self,
        ctx: Context,
        parent: str,
        name: str,
        reason: str,
        modifications: dict[str, Any] | None = None,
        *,
        dry_run: bool = False,
        commit: Commit | None = None,
    ) -> CompositionRecord:
        """Write a changed copy of `parent` under a new name, with its lineage in it.

        `modifications` maps dotted paths to values (`agents.judge.prompt`, `routing.0.to`). A fork that a
        crash left without its row is completed by repeating the call.

        Raises:
            Conflict: the name is taken; NotFound: no such parent; Invalid: a path leads nowhere, or the
            result could not be used.
        """
        layer = self._must_be_writable()
        check_name(name, what="the fork's name")
        if not reason.strip() or len(reason) > MAX_REASON_CHARS:
            raise Invalid(f"a fork needs a reason of 1 to {MAX_REASON_CHARS:,} characters")
        await self.fresh()
        found = await self._journal.read(lambda tx: self.found(tx, parent))
        now = datetime.fromtimestamp(self._journal.clock.now_ms() / 1000, UTC)
        lineage = Lineage(
            parent=found.composition,
            date=now.isoformat(timespec="seconds").replace("+00:00", "Z"),
            reason=reason.strip(),
            author=str(ctx.actor),
        )
        plan = await self._fork_plan(name, lineage, modifications or {})
        await self._journal.read(lambda tx: refuse_taken(tx, name, (layer, plan.path)))
        checked = plan.composition
        await self._journal.read(lambda tx: refuse_beyond(tx, ctx, checked, found.composition))
        if dry_run:
            return CompositionRecord(composition=plan.composition, layer=layer)
        try:
            await asyncio.to_thread(files.create_file, self._roots[layer], plan.path, plan.text)
        except Conflict:
            plan = await self._unfinished(layer, plan, lineage, modifications or {})
        data = {
            "parent": f"{lineage.parent.name}@{lineage.parent.version}",
            "parent_hash": lineage.parent.hash,
            "reason": lineage.reason,
        }
        await self.index(ctx, layer, plan, event=("composition:forked", data), commit=commit)
        return CompositionRecord(composition=plan.composition, layer=layer)

    # -------------------------------------------------------------------------------------- private

    def _writable(self) -> Layer | None:
        return next((layer for layer in ("user", "project") if layer in self._roots), None)

    def _must_be_writable(self) -> Layer:
        layer = self._writable()
        if layer is None:
            raise Invalid("the library has no layer that can be written", hint="start the server with a data folder")
        return layer

    async def fresh(self) -> None:
        """Look at the folders again, unless that was just done."""
        last = self._refreshed_s
        if last is None or self._journal.clock.monotonic_s() - last >= FRESH_S:
            await self.refresh()

    def found(self, tx: Tx, reference: str) -> Indexed:
        """The composition of a reference and its file, or NotFound with names like it."""
        found = store.find(tx, reference)
        if found is None:
            near = [head.name for head in store.heads(tx) if is_alike(head.name, reference)][:5]
            hint = f"did you mean {', '.join(near)}?" if near else "composition_discover lists what is there"
            raise NotFound(f"unknown composition {shorten(reference)!r}", hint=hint)
        return found

    def _look(
        self, known: dict[tuple[str, str], store.Known]
    ) -> tuple[list[tuple[Layer, FoundFile, Composition]], list[tuple[str, str]], list[FileProblem], int]:
        """Blocking: compare the folders with the index, and read what is new."""
        changed: list[tuple[Layer, FoundFile, Composition]] = []
        kept: set[tuple[str, str]] = set()
        problems: list[FileProblem] = []
        bad: dict[tuple[Layer, str], tuple[FoundFile, str]] = {}
        for layer, root in self._roots.items():
            found, refused = files.scan(root)
            names: dict[str, str] = {}
            problems += [FileProblem(layer=layer, path=path, message=why) for path, why in refused]
            for file in found:
                key = (layer, file.path)
                if key in known and known[key].is_still(file):
                    kept.add(key)
                    problems += _doubled(names, known[key].name, layer, file)
                    continue
                seen = self._bad.get(key)
                message = seen[1] if seen is not None and seen[0] == file else None
                if message is None:
                    composition, message = _read(root, file)
                    if composition is not None:
                        changed.append((layer, file, composition))
                        kept.add(key)
                        problems += _doubled(names, composition.name, layer, file)
                if message is not None:
                    bad[key] = (file, message)
                    if message:
                        problems.append(FileProblem(layer=layer, path=file.path, message=message))
        self._bad = bad
        return changed, [key for key in known if key not in kept], problems, len(kept)

    async def _fork_plan(self, name: str, lineage: Lineage, modifications: dict[str, Any]) -> Plan:
        document = forked_document(name, lineage, modifications)
        return await self._journal.read(lambda tx: planned(tx, document))

    async def _unfinished(self, layer: Layer, plan: Plan, lineage: Lineage, modifications: dict[str, Any]) -> Plan:
        """The same fork as it stands in a file that was never reported; Conflict if the file is another's."""
        text = await self._unreported(layer, plan, "composition:forked")
        taken = Conflict(f"the name {plan.composition.name!r} is taken", hint="choose another name")
        try:
            date = yamlio.safe_load(text or "", what="the file")["lineage"]["fork_date"]
        except (KsiError, TypeError, KeyError):
            raise taken from None
        made = Lineage(parent=lineage.parent, date=str(date), reason=lineage.reason, author=lineage.author)
        plan = await self._fork_plan(plan.composition.name, made, modifications)
        if plan.text != text:
            raise taken
        return plan

    async def _unreported(self, layer: Layer, plan: Plan, event: str) -> str | None:
        """The text of a file that a crash left without its event; None if the event is there."""
        name = plan.composition.name
        if await self._journal.read(lambda tx: store.was_reported(tx, event, name)):
            return None
        return await asyncio.to_thread(files.read_text, self._roots[layer], plan.path)

    async def index(
        self,
        ctx: Context,
        layer: Layer,
        plan: Plan,
        *,
        event: tuple[str, dict[str, Any]],
        commit: Commit | None,
        replaced: Composition | None = None,
    ) -> None:
        """The row and the event of a file that was just written; what it `replaced` stays retrievable by hash."""
        name, data = event
        status = await asyncio.to_thread((self._roots[layer] / plan.path).stat)
        file = FoundFile(path=plan.path, mtime_ns=status.st_mtime_ns, size=status.st_size)

        def write(tx: Tx) -> None:
            if replaced is not None:
                store.remember(tx, hash=replaced.hash, name=replaced.name, document=replaced.document)
            store.put(tx, layer, file, plan.composition)
            described = {"name": plan.composition.name, "hash": plan.composition.hash, "layer": layer}
            self._journal.record(tx, name, {**described, **data}, ctx)

        run: Callable[[Work[None]], Awaitable[None]] = commit or self._journal.commit
        await run(write)


def _read(root: Path, file: FoundFile) -> tuple[Composition | None, str | None]:
    """The composition, or why there is none; an empty reason for a file that does not claim to be one."""
    try:
        composition = files.read_composition(root, file.path)
    except KsiError as error:
        return None, error.text()
    return composition, None if composition is not None else ""


def _doubled(names: dict[str, str], name: str, layer: Layer, file: FoundFile) -> list[FileProblem]:
    first = names.setdefault(name, file.path)
    if first == file.path:
        return []
    return [FileProblem(layer=layer, path=file.path, message=f"the name {name!r} is already that of {first}")]


def _resolved(tx: Tx, found: Indexed, vars: dict[str, Any], *, lenient: bool) -> Resolved:
    return resolve(found.composition, store.lookup_in(tx), vars, lenient=lenient)
