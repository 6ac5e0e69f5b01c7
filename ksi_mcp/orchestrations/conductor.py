"""Runs of patterns: started in one transaction, looked at, ended."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Final

from ksi_mcp.agents import reach
from ksi_mcp.agents.levels import level_in_new_run
from ksi_mcp.agents.model import Agent, AgentSpec, agent_of, check_within
from ksi_mcp.agents.reach import Grants
from ksi_mcp.agents.roster import Roster
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import GLOBAL
from ksi_mcp.compositions import runs
from ksi_mcp.compositions.library import Library
from ksi_mcp.compositions.routes import StaticRule
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, Invalid, NotFound
from ksi_mcp.events.journal import Recorder
from ksi_mcp.events.model import Event, encode_json
from ksi_mcp.events.store import MAX_CURSOR_CHARS
from ksi_mcp.ids import OrchestrationId, new_id
from ksi_mcp.orchestrations.checkpoints import Vault
from ksi_mcp.orchestrations.forking import Forker
from ksi_mcp.orchestrations.model import ENDED, Ending, Orchestration, QueueState, StartPlan, orchestration_of
from ksi_mcp.orchestrations.restoring import Restorer
from ksi_mcp.orchestrations.suspension import Suspension
from ksi_mcp.permissions import SYSTEM, Context, system_context
from ksi_mcp.queues.model import Turn
from ksi_mcp.routing.outbox import event_context
from ksi_mcp.routing.router import Router
from ksi_mcp.routing.rules import Rule, RuleDraft
from ksi_mcp.routing.targets import AGENT, targets_of

TURN_ENDS: Final = frozenset({"completion:result", "completion:failed", "completion:cancelled"})


class Conductor:
    """Which runs are open, and how far they are. Every function runs inside the caller's transaction."""

    def __init__(self, journal: Recorder, library: Library, roster: Roster, router: Router, ledger: Ledger) -> None:
        self._journal = journal
        self._library = library
        self._roster = roster
        self._router = router
        self._ledger = ledger
        self.suspension = Suspension(journal, ledger)
        self.vault = Vault(journal)
        self.restorer = Restorer(journal, self.suspension)
        self.forker = Forker(journal, ledger)

    def listen(self) -> None:
        """Hear, from now on, how turns end and which limits end a run. After those who take a lost turn up again."""
        self._router.listen(TURN_ENDS, self._turn_ended)
        self._router.listen(("budget:terminate",), self._limit_reached)

    def start(self, tx: Tx, ctx: Context, plan: StartPlan) -> tuple[Orchestration, list[Agent], list[Rule]]:
        """Open a run: its account, its agents, its static rules, all or nothing."""
        orchestration_id = OrchestrationId(new_id("o"))
        held = reach.grants(tx, ctx)
        for spec in plan.agents:
            if held.capabilities is not None:
                check_within(spec.capabilities, held.capabilities, holder=str(ctx.actor))
            reach.check_servers(tx, ctx, spec.settings.mcp_servers)
        specs = [_within_level(spec, held, starter=str(ctx.actor)) for spec in plan.agents]
        tx.run(
            "orchestrations.insert",
            {
                "orchestration_id": orchestration_id,
                "pattern": plan.resolved.name,
                "pattern_hash": plan.resolved.hash,
                "orchestrator": plan.orchestrator,
                "vars": json.dumps(plan.resolved.vars, ensure_ascii=False, default=str),
                "max_depth": plan.max_depth,
                "created_by": str(ctx.actor),
                "now_ms": tx.now_ms,
            },
        )
        if plan.checkpoint_every is not None:
            every = {"orchestration_id": orchestration_id, "every": plan.checkpoint_every}
            tx.run("orchestrations.set_checkpoint_every", every)
        # What an agent starts is paid from its own account, so no run can be a way around a limit.
        parent = plan.account or ctx.actor.agent_id or GLOBAL
        self._ledger.open(tx, orchestration_id, parent_id=parent, limits=plan.limits)
        self._library.remember(tx, plan.resolved)
        inside = replace(ctx, orchestration_id=orchestration_id)
        self._journal.record(
            tx,
            "orchestration:started",
            {
                "orchestration": orchestration_id,
                "pattern": plan.resolved.reference,
                "orchestrator": plan.orchestrator,
                "agents": [spec.name for spec in plan.agents],
            },
            inside,
        )
        # The actor's right to start was checked; what the pattern itself makes, the server makes.
        as_server = system_context(inside)
        agents = [self._spawn(tx, as_server, spec, orchestration_id) for spec in specs]
        ids = {agent.name: agent.agent_id for agent in agents}
        drafts = [draft for static in plan.rules for draft in _drafts(static, ids, orchestration_id)]
        for name in {name for draft in drafts for name in targets_of(draft.target).agents}:
            # Beyond the pattern's own agents, only the actor itself and whom it may route.
            if name not in ids.values() and reach.find(tx, ctx, name).agent_id != ctx.actor.agent_id:
                reach.find_routable(tx, ctx, name, what="the target")
        rules = [self._router.add_rule(tx, as_server, draft) for draft in drafts]
        return self.get(tx, orchestration_id), agents, rules

    def _spawn(self, tx: Tx, ctx: Context, spec: AgentSpec, orchestration_id: str) -> Agent:
        return self._roster.spawn(tx, ctx, replace(spec, orchestration_id=orchestration_id))

    def get(self, tx: Tx, orchestration_id: str) -> Orchestration:
        """A run by its id, whoever asks.

        Raises:
            NotFound: there is none.
        """
        row = tx.one("orchestrations.one", {"orchestration_id": orchestration_id})
        if row is None:
            raise NotFound(
                f"unknown orchestration {orchestration_id[:80]!r}", hint="orchestration_list shows the runs there are"
            )
        return orchestration_of(row)

    def find(self, tx: Tx, ctx: Context, orchestration_id: str | None) -> Orchestration:
        """A run that the actor can see: an agent its own, which it need not name, and what its family started."""
        own = reach.grants(tx, ctx).orchestration_id
        if orchestration_id is None:
            if own is None:
                raise Invalid("orchestration is missing", hint="orchestration_list shows the runs there are")
            return self.get(tx, own)
        found, seen = self.get(tx, orchestration_id), reach.visible_runs(tx, ctx)
        if seen is not None and found.orchestration_id not in seen:
            raise NotFound(f"unknown orchestration {orchestration_id[:80]!r}", hint=f"yours is {own or 'none'}")
        return found

    def page(
        self, tx: Tx, ctx: Context, *, state: str | None, pattern: str | None, limit: int, cursor: str | None
    ) -> tuple[list[Orchestration], str | None]:
        """Runs, newest first, and where the next page begins."""
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= MAX_CURSOR_CHARS):
            raise Invalid(f"cursor {cursor[:40]!r} is not one of ours", hint="pass the `cursor` of the last page")
        seen = reach.visible_runs(tx, ctx)
        visible = None if seen is None else json.dumps(sorted(seen))
        values = {"state": state, "pattern": pattern, "visible": visible, "limit": limit + 1}
        rows = tx.all("orchestrations.page", {**values, "before": int(cursor or sys.maxsize)})
        runs = [orchestration_of(row) for row in rows]
        return runs[:limit], str(runs[limit - 1].n) if len(runs) > limit else None

    def queue(self, tx: Tx, orchestration_id: str) -> QueueState:
        """The turns of a run by state, and what they cost so far."""
        rows = tx.all("queues.census_of_orchestration", {"orchestration_id": orchestration_id})
        turns: dict[str, int] = {}
        for row in rows:
            state = "queued" if row["state"] == "ready" else row["state"]
            turns[state] = turns.get(state, 0) + row["turns"]
        return QueueState(
            turns=turns, usd_micros=sum(row["usd_micros"] for row in rows), tokens=sum(row["tokens"] for row in rows)
        )

    def end(
        self, tx: Tx, ctx: Context, run: Orchestration, ending: Ending
    ) -> tuple[Orchestration, list[Agent], list[Turn]]:
        """End a run: its agents and rules end with it, what waits is cancelled.

        Returns the run, the agents that ended with it, and the turns that were cancelled.

        Raises:
            Conflict: it has ended before; Invalid: its score or metrics are no numbers to reckon with.
        """
        runs.check_figures(ending.score, ending.metrics)
        changed = tx.run(
            "orchestrations.end",
            {
                "orchestration_id": run.orchestration_id,
                "state": ending.state,
                "outcome": ending.outcome,
                "score": ending.score,
                "metrics": None if ending.metrics is None else encode_json("metrics", ending.metrics),
                "summary": ending.summary,
                "now_ms": tx.now_ms,
            },
        )
        if changed == 0:
            raise Conflict(f"orchestration {run.orchestration_id} is {run.state} already", hint="nothing was changed")
        inside = replace(ctx, orchestration_id=run.orchestration_id)
        tx.run("orchestrations.drop_held_delayed", {"orchestration_id": run.orchestration_id})
        agents = self._roster.living_in(tx, run.orchestration_id)
        cancelled: list[Turn] = []
        for agent in agents:
            cancelled += self.end_agent(tx, inside, agent, reason=f"the orchestration was {ending.state}")
        self._router.end_scope(tx, f"orchestration:{run.orchestration_id}")
        by = ending.reported_by or str(ctx.actor)
        runs.record(tx, run.orchestration_id, reported_by=by, suspended_at_ms=run.suspended_at_ms)
        self._journal.record(
            tx,
            f"orchestration:{ending.state}",
            {
                "orchestration": run.orchestration_id,
                "pattern": run.pattern,
                "outcome": ending.outcome,
                "score": ending.score,
                "agents": len(agents),
                "cancelled": len(cancelled),
            },
            inside,
        )
        return self.get(tx, run.orchestration_id), agents, cancelled

    def drain(self, tx: Tx, ctx: Context, run: Orchestration, ending: Ending) -> Orchestration:
        """End a run once its turns have ended: until then its agents take no more messages.

        Raises:
            Conflict: it has ended, or its turns do not run; Invalid: see `end`.
        """
        runs.check_figures(ending.score, ending.metrics)
        ending = replace(ending, reported_by=str(ctx.actor))
        values = {"orchestration_id": run.orchestration_id, "ending": encode_json("ending", asdict(ending))}
        if tx.run("orchestrations.drain", values) == 0:
            hint = "nothing was changed" if run.state in ENDED else "resume it first, or end it with mode='now'"
            raise Conflict(f"orchestration {run.orchestration_id} is {run.state}", hint=hint)
        tx.run("orchestrations.drain_agents", {"orchestration_id": run.orchestration_id})
        pending = self._pending(tx, run.orchestration_id)
        facts = {"orchestration": run.orchestration_id, "pattern": run.pattern, "pending": pending}
        inside = replace(ctx, orchestration_id=run.orchestration_id)
        self._journal.record(tx, "orchestration:draining", facts, inside)
        if not pending:
            self.end(tx, ctx, run, ending)
        return self.get(tx, run.orchestration_id)

    def _turn_ended(self, tx: Tx, event: Event) -> None:
        """A turn of a run has ended: the last one of a run that drains, or the one after which it is kept."""
        if event.orchestration_id is None:
            return
        own = {"orchestration_id": event.orchestration_id}
        row = tx.one("orchestrations.turn_ended", own)
        if row is None:
            return
        ctx = event_context(event, SYSTEM)
        if row["draining"] and self._pending(tx, event.orchestration_id) == 0:
            run = self.get(tx, event.orchestration_id)
            if run.draining is not None:
                self.end(tx, ctx, run, run.draining)
        elif row["checkpoint_every"] is not None and row["since_checkpoint"] >= row["checkpoint_every"]:
            tx.run("orchestrations.counted", own)
            self.vault.create(tx, ctx, self.get(tx, event.orchestration_id), automatic=True)

    def _limit_reached(self, tx: Tx, event: Event) -> None:
        """An account whose policy is `terminate` is used up: what it belongs to ends, a run or an agent."""
        account, ctx = str(event.data["account"]), event_context(event, SYSTEM)
        reason = str(event.data["reason"])
        if (row := tx.one("orchestrations.one", {"orchestration_id": account})) is not None:
            run = orchestration_of(row)
            if run.state not in ENDED:
                self.end(tx, ctx, run, Ending(state="stopped", summary=reason))
            return
        # The account of all is nobody's own: whose turn could not be paid ends.
        row = tx.one("agents.one", {"agent_id": account}) or tx.one("agents.one", {"agent_id": event.agent_id})
        if row is not None and row["status"] == "active":
            self.end_agent(tx, ctx, agent_of(row), reason=reason)

    def _pending(self, tx: Tx, orchestration_id: str) -> int:
        row = tx.one("orchestrations.pending", {"orchestration_id": orchestration_id})
        return 0 if row is None else int(row["turns"])

    def end_agent(self, tx: Tx, ctx: Context, agent: Agent, *, reason: str) -> list[Turn]:
        """End one agent and the rules that live with it; the turns cancelled by it."""
        cancelled = self._roster.end(tx, ctx, agent, life="terminated", reason=reason)
        self._router.end_scope(tx, f"agent:{agent.agent_id}")
        return cancelled


def _within_level(spec: AgentSpec, held: Grants, *, starter: str) -> AgentSpec:
    """The spec with no more reach over routes than whoever starts the run can grant."""
    level = level_in_new_run(held, spec.routing_level, capabilities=spec.capabilities, starter=starter)
    return replace(spec, routing_level=level)


def _drafts(static: StaticRule, ids: Mapping[str, str], orchestration_id: str) -> list[RuleDraft]:
    """A pattern's rule speaks of roles; a rule of the table speaks of agents. One draft a target."""
    return [
        RuleDraft(
            source_pattern=static.pattern,
            source_agent=None if static.source is None else ids.get(static.source, static.source),
            condition=static.condition,
            target=AGENT + ids[role] if (role := target.removeprefix(AGENT)) in ids else target,
            mapping=static.mapping,
            priority=static.priority if static.priority is not None else 100,
            ttl_s=static.ttl_s,
            scope=f"orchestration:{orchestration_id}",
        )
        for target in static.targets
    ]
