"""A run that stands still and goes on: hours, processes or reboots later."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict
from ksi_mcp.events.journal import Recorder
from ksi_mcp.ids import OrchestrationId
from ksi_mcp.orchestrations.model import ENDED, Mode, Orchestration
from ksi_mcp.permissions import Context, system_context
from ksi_mcp.queues.holding import HeldCensus, held_census, hold_sessions, interrupt_held, release_sessions
from ksi_mcp.routing.pausing import pause_rules, resume_rules


class Suspension:
    """Holds a run and lets it go, each in the caller's transaction and in a few statements for all of its agents.

    While it is held: no turn starts, and one at work stops between two rounds (or at once, with `now`) and keeps
    what was paid; its agents take messages, which wait; rules deliver, but do not grow older; delayed events and
    the wall clock of its budgets stand still.
    """

    def __init__(self, journal: Recorder, ledger: Ledger) -> None:
        self._journal = journal
        self._ledger = ledger

    def suspend(self, tx: Tx, ctx: Context, run: Orchestration, *, mode: Mode) -> HeldCensus:
        """Hold a run; how its turns stand. A run that is held already stays so (`now` stops what still runs).

        Raises:
            Conflict: it has ended.
        """
        values = {"orchestration_id": run.orchestration_id, "now_ms": tx.now_ms}
        if run.state in ENDED:
            raise Conflict(f"orchestration {run.orchestration_id} is {run.state}", hint="there is nothing to suspend")
        changed = tx.run("orchestrations.suspend", values) == 1
        if changed:
            hold_sessions(tx, run.orchestration_id)
            pause_rules(tx, run.orchestration_id)
            tx.run("orchestrations.hold_delayed", values)
        inside = replace(ctx, orchestration_id=run.orchestration_id)
        if mode == "now":
            self.interrupt(tx, inside, run.orchestration_id)
        census = held_census(tx, run.orchestration_id)
        if changed:
            facts = {"mode": mode, "running": census.running, "held": census.held, "queued": census.queued}
            self._record(tx, "orchestration:suspended", run, facts, inside)
        return census

    def interrupt(self, tx: Tx, ctx: Context, orchestration_id: OrchestrationId) -> int:
        """Take the turns at work in a held run from their worker, which cuts their calls off; how many."""
        own = None if ctx.slot is None else ctx.slot.turn_id  # it stops by itself, after this call
        interrupted = interrupt_held(tx, orchestration_id, except_turn_id=own)
        as_server = system_context(ctx)
        for each in interrupted:
            because = replace(as_server, cause_id=f"turn:{each.turn_id}")
            facts = {"turn": each.turn_id, "agent": each.session_id, "attempt": each.attempt}
            self._journal.record(
                tx,
                "completion:interrupted",
                facts,
                because,
                agent_id=each.session_id,
                orchestration_id=orchestration_id,
                routable=False,
            )
        return len(interrupted)

    def resume(self, tx: Tx, ctx: Context, run: Orchestration) -> int:
        """Let a held run go on; how long it stood still, in ms. One that runs goes on running: 0.

        Raises:
            Conflict: it has ended.
        """
        if run.state in ENDED:
            raise Conflict(
                f"orchestration {run.orchestration_id} is {run.state}",
                hint="checkpoint_restore goes back to one of its checkpoints, if it has any",
            )
        values = {"orchestration_id": run.orchestration_id, "now_ms": tx.now_ms}
        if tx.run("orchestrations.resume", values) == 0:
            return 0
        paused_ms = max(tx.now_ms - (run.suspended_at_ms or tx.now_ms), 0)
        released = release_sessions(tx, run.orchestration_id, paused_ms=paused_ms)
        resume_rules(tx, run.orchestration_id)
        tx.run("orchestrations.release_delayed", values)
        accounts = [row["account_id"] for row in tx.all("orchestrations.accounts", values)]
        self._ledger.add_pause(tx, accounts, paused_ms)
        inside = replace(ctx, orchestration_id=run.orchestration_id)
        self._record(tx, "orchestration:resumed", run, {"paused_ms": paused_ms, "released": released}, inside)
        return paused_ms

    def _record(self, tx: Tx, name: str, run: Orchestration, facts: dict[str, Any], ctx: Context) -> None:
        data = {"orchestration": run.orchestration_id, "pattern": run.pattern, **facts}
        self._journal.record(tx, name, data, ctx, orchestration_id=run.orchestration_id)
