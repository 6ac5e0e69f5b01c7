"""What can we go back to? Checkpoints: made, listed, found."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from ksi_mcp.db import Row, Tx
from ksi_mcp.errors import Conflict, Exhausted, Invalid, NotFound
from ksi_mcp.events.journal import Recorder
from ksi_mcp.events.store import MAX_CURSOR_CHARS
from ksi_mcp.ids import new_id
from ksi_mcp.orchestrations.model import Orchestration
from ksi_mcp.orchestrations.snapshot import Snapshot, decode, encode, take
from ksi_mcp.permissions import Context, within

KEEP_AUTOMATIC: Final = 20
"""Automatic checkpoints of a run; the oldest go."""
MAX_ASKED_FOR: Final = 100
"""Checkpoints of a run that somebody asked for."""
MAX_LABEL_CHARS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A moment of a run. `left_by`: the earlier checkpoint that the run went back to since, if it did."""

    n: int
    checkpoint_id: str
    orchestration_id: str
    label: str | None
    automatic: bool
    turns: int
    """Finished by then."""
    event_id: int
    """The newest event by then."""
    at_ms: int
    left_by: str | None


class Vault:
    """The checkpoints of runs. Every function runs inside the caller's transaction."""

    def __init__(self, journal: Recorder) -> None:
        self._journal = journal

    def create(
        self, tx: Tx, ctx: Context, run: Orchestration, *, label: str | None = None, automatic: bool = False
    ) -> Checkpoint:
        """Keep a run as it stands; it may run on meanwhile.

        Raises:
            Invalid: the label cannot be used.
            Exhausted: the run has as many checkpoints as one run can have, or is too large for one.
        """
        if label is not None and not (0 < len(label.strip()) <= MAX_LABEL_CHARS and label.isprintable()):
            raise Invalid(
                f"label {label[:40]!r} cannot be used", hint=f"use up to {MAX_LABEL_CHARS} printable characters"
            )
        row = tx.one("orchestrations.count_checkpoints", {"orchestration_id": run.orchestration_id})
        if not automatic and row is not None and row["checkpoints"] >= MAX_ASKED_FOR:
            raise Exhausted(
                f"orchestration {run.orchestration_id} has {MAX_ASKED_FOR} checkpoints, the most it can have",
                hint="restore(into='new') from one of them begins a run with none",
            )
        snapshot, checkpoint_id = take(tx, run), new_id("c")
        tx.run(
            "orchestrations.put_checkpoint",
            {
                "checkpoint_id": checkpoint_id,
                "orchestration_id": run.orchestration_id,
                "label": label,
                "automatic": int(automatic),
                "turns": snapshot.finished,
                "event_id": snapshot.last_event,
                "snapshot": encode(snapshot),
                "now_ms": tx.now_ms,
            },
        )
        if automatic:
            spare = {"orchestration_id": run.orchestration_id, "keep": KEEP_AUTOMATIC}
            tx.run("orchestrations.spare_automatic", spare)
        facts = {
            "checkpoint": checkpoint_id,
            "orchestration": run.orchestration_id,
            "label": label,
            "automatic": automatic,
            "turns": snapshot.finished,
            "unfinished": len(snapshot.turns),
        }
        self._journal.record(tx, "checkpoint:created", facts, within(ctx, run.orchestration_id))
        return self.find(tx, run.orchestration_id, checkpoint_id)[0]

    def find(self, tx: Tx, orchestration_id: str | None, ref: str | None) -> tuple[Checkpoint, Snapshot]:
        """A checkpoint by its id or, within a run, its label; without either the run's newest.

        Raises:
            NotFound: there is none.
            Invalid: neither a run nor a checkpoint was said.
        """
        if ref is None:
            if orchestration_id is None:
                raise Invalid("checkpoint is missing", hint="checkpoint_list shows them")
            row = tx.one("orchestrations.newest_checkpoint", {"orchestration_id": orchestration_id})
        else:
            row = tx.one("orchestrations.checkpoint", {"orchestration_id": orchestration_id, "ref": ref})
        if row is None:
            where = "" if orchestration_id is None else f" of {orchestration_id[:80]}"
            what = "no checkpoint" if ref is None else f"unknown checkpoint {ref[:80]!r}"
            raise NotFound(f"{what}{where}", hint="checkpoint_list shows them; checkpoint_create makes one")
        return checkpoint_of(row), decode(row["snapshot"])

    def page(
        self,
        tx: Tx,
        *,
        orchestration_id: str | None,
        visible: Collection[str] | None,
        limit: int,
        cursor: str | None,
    ) -> tuple[list[tuple[Checkpoint, int]], str | None]:
        """Checkpoints with their size in bytes, newest first, and where the next page begins."""
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= MAX_CURSOR_CHARS):
            raise Invalid(f"cursor {cursor[:40]!r} is not one of ours", hint="pass the `cursor` of the last page")
        values = {
            "orchestration_id": orchestration_id,
            "visible": None if visible is None else json.dumps(sorted(visible)),
            "before": int(cursor or sys.maxsize),
            "limit": limit + 1,
        }
        rows = tx.all("orchestrations.page_of_checkpoints", values)
        found = [(checkpoint_of(row), int(row["bytes"])) for row in rows[:limit]]
        return found, str(found[-1][0].n) if len(rows) > limit else None


def check_not_left(checkpoint: Checkpoint) -> None:
    """A run goes back along its own line only.

    Raises:
        Conflict: the run went back to an earlier one since.
    """
    if checkpoint.left_by is not None:
        raise Conflict(
            f"checkpoint {checkpoint.checkpoint_id} lies in a time line that was left: "
            f"the run went back to {checkpoint.left_by}",
            hint="resume from there: what was bought since is given again, not bought again",
        )


def checkpoint_of(row: Row) -> Checkpoint:
    """The record behind a row."""
    fields = {name: row[name] for name in Checkpoint.__slots__}
    fields["automatic"] = bool(row["automatic"])
    return Checkpoint(**fields)
