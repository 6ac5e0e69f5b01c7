"""The role object of decisions: what was decided, on what evidence, and how it turned out."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, Final

from ksi_mcp.compositions.files import DECISIONS_SUFFIX, read_text
from ksi_mcp.compositions.library import Library
from ksi_mcp.compositions.model import parse_reference, shorten
from ksi_mcp.compositions.records import Commit
from ksi_mcp.db import Tx
from ksi_mcp.decisions import files, importing, store
from ksi_mcp.decisions.importing import ImportReport
from ksi_mcp.decisions.model import (
    Decision,
    DecisionDraft,
    DecisionPage,
    Resolution,
    Resolved,
    draft_decision,
    recorded_agent,
)
from ksi_mcp.errors import Conflict, KsiError, NotFound
from ksi_mcp.events.journal import Journal
from ksi_mcp.ids import DecisionId, new_id
from ksi_mcp.permissions import Context

MAX_PAGE: Final = 200
_REASONING_IN_EVENT: Final = 2_000
_HEAL_BATCH: Final = 500

_LOG: Final = logging.getLogger(__name__)


class DecisionLog:
    """Decisions live in the database and are appended to a file a pattern in the writable library.

    The row and its event are one transaction; the file follows it, and `write_missing` adds what a
    crash in between left out.
    """

    def __init__(self, journal: Journal, library: Library) -> None:
        self._journal = journal
        self._library = library

    async def track(
        self,
        ctx: Context,
        commit: Commit | None = None,
        *,
        pattern: str,
        decision: str,
        context: Any = None,
        reasoning: str | None = None,
        confidence: float | str | None = None,
        outcome: str = "pending",
        score: float | str | None = None,
        agent: str | None = None,
    ) -> Decision:
        """Store a decision, report it, and append it to the pattern's file.

        Raises:
            Invalid: a field cannot be stored; Refused: an agent names another as the one who decided.
        """
        draft = draft_decision(
            pattern=pattern,
            decision=decision,
            context=context,
            reasoning=reasoning,
            confidence=confidence,
            outcome=outcome,
            score=score,
            agent=agent,
        )
        run = commit or self._journal.commit
        tracked = await run(lambda tx: self.track_in(tx, ctx, draft))
        await self.append(tracked)
        return tracked

    def track_in(self, tx: Tx, ctx: Context, draft: DecisionDraft) -> Decision:
        """The row and the event `decision:tracked`; call `append` once the transaction is committed.

        Raises:
            Refused: an agent names another as the one who decided.
        """
        tracked = Decision(
            decision_id=DecisionId(new_id("d")),
            pattern=draft.pattern,
            decision=draft.decision,
            context=draft.context,
            reasoning=draft.reasoning,
            confidence=draft.confidence,
            outcome=draft.outcome,
            score=draft.score,
            agent=recorded_agent(ctx.actor, draft.agent),
            orchestration_id=ctx.orchestration_id,
            at_ms=tx.now_ms,
        )
        store.insert(tx, tracked)
        data = {
            "decision_id": tracked.decision_id,
            "pattern": tracked.pattern,
            "decision": tracked.decision,
            "reasoning": tracked.reasoning and tracked.reasoning[:_REASONING_IN_EVENT],
            "confidence": tracked.confidence,
            "outcome": tracked.outcome,
            "score": tracked.score,
            "agent": tracked.agent,
        }
        self._journal.record(tx, "decision:tracked", data, ctx)
        return tracked

    def resolve_in(self, tx: Tx, ctx: Context, decision_id: str, how: Resolution) -> Decision:
        """Say how a decision turned out, and report it; call `append(.., kind="resolves")` once that is committed.

        Whether the actor may is the caller's to check.

        Raises:
            NotFound: there is none; Conflict: it was said before.
        """
        found = self.get(tx, decision_id)
        by = str(ctx.actor)
        said = Resolved(decision_id=decision_id, outcome=how.outcome, score=how.score, by=by, at_ms=tx.now_ms)
        if not store.resolve(tx, said):
            raise Conflict(
                f"decision {decision_id} was resolved as {shorten(found.outcome)!r} by {found.resolved_by}",
                hint="track another decision for what was learned since",
            )
        data = {
            "decision_id": decision_id,
            "pattern": found.pattern,
            "outcome": how.outcome,
            "score": how.score,
            "agent": found.agent,
            "by": by,
        }
        self._journal.record(tx, "decision:resolved", data, ctx)
        return self.get(tx, decision_id)

    def get(self, tx: Tx, decision_id: str) -> Decision:
        """A decision by its id.

        Raises:
            NotFound: there is none.
        """
        found = store.by_ids(tx, [decision_id])
        if not found:
            raise NotFound(f"unknown decision {shorten(decision_id)!r}", hint="decision_query lists what was decided")
        return found[0]

    async def import_log(
        self, ctx: Context, pattern: str, text: str | None = None, *, commit: Commit | None = None
    ) -> ImportReport:
        """Take over the decisions of a log: `text`, or the pattern's own file. What is there already stays as it is.

        Raises:
            Invalid: it is no list of decisions; NotFound: there is no such file.
        """
        name, _version = parse_reference(pattern, what="the pattern")
        folder = self._library.decisions_root
        if text is None:
            if folder is None:
                raise NotFound("the library has no folder of decisions", hint="give the log as text")
            path = f"{name}{DECISIONS_SUFFIX}.yaml"
            text = await asyncio.to_thread(read_text, folder, path, max_bytes=importing.MAX_LOG_BYTES)
        log = await asyncio.to_thread(importing.read_log, text, name, now_ms=self._journal.clock.now_ms())

        def write(tx: Tx) -> tuple[list[str], int]:
            imported = [str(each.decision_id) for each in log.decisions if store.insert(tx, each)]
            resolved = sum(store.resolve(tx, each) for each in log.resolutions)
            if imported or resolved:
                data = {"pattern": name, "imported": len(imported), "resolved": resolved}
                self._journal.record(tx, "decision:imported", data, ctx)
            return imported, resolved

        run = commit or self._journal.commit
        imported, resolved = await run(write)
        if folder is not None:
            await self._heal(folder, name, imported, "id")
        return ImportReport(
            imported=len(imported),
            known=len(log.decisions) - len(imported),
            resolved=resolved,
            problems=log.problems,
        )

    async def append(self, decision: Decision, *, kind: files.Kind = "id") -> None:
        """Add a committed decision to its file. A file that cannot be written is logged, and healed later."""
        folder = self._library.decisions_root
        if folder is None:
            return
        try:
            await asyncio.to_thread(files.append, folder, decision.pattern, [decision], kind=kind)
        except KsiError as error:
            _LOG.warning("decision %s is stored, but not yet in its file: %s", decision.decision_id, error.text())

    def query(
        self,
        tx: Tx,
        *,
        pattern: str | None = None,
        decision: str | None = None,
        outcome: str | None = None,
        agent: str | None = None,
        orchestration_id: str | None = None,
        min_score: float | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> DecisionPage:
        """Decisions newest first; `decision` is a part of its text, the others are exact."""
        wanted: dict[str, str | float | None] = {
            "pattern": parse_reference(pattern, what="the pattern")[0] if pattern else None,
            "decision": decision,
            "outcome": outcome,
            "agent": agent,
            "orchestration_id": orchestration_id,
            "min_score": min_score,
        }
        return store.page(tx, wanted, limit=max(1, min(limit, MAX_PAGE)), cursor=cursor)

    async def write_missing(self) -> int:
        """Append to the files what the database has and they lack; how many entries that were.

        A file that was deleted is written anew. One that cannot be written is logged and left.
        """
        folder = self._library.decisions_root
        if folder is None:
            return 0
        written = 0
        for pattern, known in (await self._journal.read(store.ids_by_pattern)).items():
            written += await self._heal(folder, pattern, [each for each, _ in known], "id")
            if resolved := [each for each, is_resolved in known if is_resolved]:
                written += await self._heal(folder, pattern, resolved, "resolves")
        return written

    async def _heal(self, folder: Path, pattern: str, ids: list[str], kind: files.Kind) -> int:
        written = 0
        try:
            missing = await asyncio.to_thread(files.missing_ids, folder, pattern, ids, kind=kind)
            for start in range(0, len(missing), _HEAL_BATCH):
                batch = missing[start : start + _HEAL_BATCH]
                decisions = await self._journal.read(lambda tx, batch=batch: store.by_ids(tx, batch))  # type: ignore[misc]
                await asyncio.to_thread(files.append, folder, pattern, decisions, kind=kind)
                written += len(decisions)
        except KsiError as error:
            _LOG.warning("the decisions of %r are not all in their file: %s", pattern, error.text())
        return written
