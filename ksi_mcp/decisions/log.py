"""The role object of decisions: what was decided, on what evidence, and how it turned out."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from ksi_mcp.compositions.library import Library
from ksi_mcp.compositions.model import parse_reference
from ksi_mcp.compositions.records import Commit
from ksi_mcp.db import Tx
from ksi_mcp.decisions import files, store
from ksi_mcp.decisions.model import Decision, DecisionDraft, DecisionPage, draft_decision, recorded_agent
from ksi_mcp.errors import KsiError
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

    async def append(self, decision: Decision) -> None:
        """Add a committed decision to its file. A file that cannot be written is logged, and healed later."""
        folder = self._library.decisions_root
        if folder is None:
            return
        try:
            await asyncio.to_thread(files.append, folder, decision.pattern, [decision])
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
        limit: int = 20,
        cursor: str | None = None,
    ) -> DecisionPage:
        """Decisions newest first; `decision` is a part of its text, the others are exact."""
        wanted = {
            "pattern": parse_reference(pattern, what="the pattern")[0] if pattern else None,
            "decision": decision,
            "outcome": outcome,
            "agent": agent,
            "orchestration_id": orchestration_id,
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
        for pattern, ids in (await self._journal.read(store.ids_by_pattern)).items():
            try:
                missing = await asyncio.to_thread(files.missing_ids, folder, pattern, ids)
                for start in range(0, len(missing), _HEAL_BATCH):
                    batch = missing[start : start + _HEAL_BATCH]
                    decisions = await self._journal.read(lambda tx, batch=batch: store.by_ids(tx, batch))  # type: ignore[misc]
                    await asyncio.to_thread(files.append, folder, pattern, decisions)
                    written += len(decisions)
            except KsiError as error:
                _LOG.warning("the decisions of %r are not all in their file: %s", pattern, error.text())
        return written
