"""Who may have which rule: read in the transaction that makes the change, so a right that is gone is gone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, Exhausted, NotFound, Refused
from ksi_mcp.events.patterns import shorten
from ksi_mcp.ids import OrchestrationId
from ksi_mcp.permissions import Context
from ksi_mcp.routing import store
from ksi_mcp.routing.rules import AGENT, GLOBAL, Rule, RuleDraft, Target, compile_source, target_of

ORCHESTRATION = "orchestration:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """How many living rules there may be."""

    per_agent: int = 1_000
    total: int = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What a draft means, now that names are ids: checked against the actor's reach."""

    source_agent: str | None
    target: Target
    scope: str
    orchestration_id: str | None


def settle(tx: Tx, ctx: Context, draft: RuleDraft) -> Settled:
    """Resolve a draft's names and check that the actor may have such a rule.

    Raises:
        Refused: it reaches beyond the actor.
        NotFound: an agent or orchestration is not there, or not in the actor's sight.
        Conflict: it has ended.
    """
    scope, orchestration_id = _scope(tx, ctx, draft.scope)
    source = None if draft.source_agent is None else compile_source(draft.source_agent).text
    if ctx.actor.kind == "agent":
        source = _own_source(tx, ctx, source)
    target = target_of(draft.target)
    if target.kind == "agent":
        # A name means the agent of the run that the rule, or else the actor, belongs to.
        run = orchestration_id or reach.grants(tx, ctx).orchestration_id
        within = replace(ctx, orchestration_id=None if run is None else OrchestrationId(run))
        agent = reach.find(tx, within, target.name)
        if agent.life != "active":
            raise Conflict(
                f"agent {agent.name!r} ({agent.agent_id}) is {agent.life}", hint="a rule needs a living target"
            )
        target = Target(kind="agent", name=agent.agent_id)
    return Settled(source_agent=source, target=target, scope=scope, orchestration_id=orchestration_id)


def check_owner(tx: Tx, ctx: Context, rule: Rule, *, action: str) -> None:
    """An agent changes only rules that it made for itself.

    Raises:
        Refused: somebody else made it, or it was widened since.
    """
    if ctx.actor.kind != "agent":
        return
    held = reach.grants(tx, ctx)
    own_scopes = {AGENT + str(ctx.actor.agent_id), f"{ORCHESTRATION}{held.orchestration_id}"}
    if rule.created_by != str(ctx.actor):
        raise Refused(
            f"{ctx.actor} may not {action} rule {rule.rule_id!r}: {rule.created_by} made it",
            hint="an agent changes only its own rules; ask whoever made it",
        )
    if rule.source_agent != ctx.actor.agent_id or rule.scope not in own_scopes:
        raise Refused(
            f"{ctx.actor} may not {action} rule {rule.rule_id!r}: it hears {rule.source_agent or 'everybody'}",
            hint="the operator has widened it",
        )


def check_quota(tx: Tx, ctx: Context, quotas: Quotas) -> None:
    """Room for one more rule.

    Raises:
        Exhausted: the actor, or everybody together, has as many as there may be.
    """
    if ctx.actor.kind == "agent" and store.count(tx, str(ctx.actor)) >= quotas.per_agent:
        raise Exhausted(
            f"{ctx.actor} has {quotas.per_agent:,} rules, the most an agent can have",
            hint="delete some with routing_delete_rule, or give them a ttl_s",
        )
    if store.count(tx) >= quotas.total:
        raise Exhausted(
            f"the table has {quotas.total:,} rules, the most it can hold",
            hint="delete some with routing_delete_rule, or give them a ttl_s",
        )


def viewer_of(tx: Tx, ctx: Context) -> store.Viewer | None:
    """Whose eyes a query has; None sees everything."""
    if ctx.actor.kind != "agent":
        return None
    held = reach.grants(tx, ctx)
    return store.Viewer(agent_id=str(ctx.actor.agent_id), orchestration_id=held.orchestration_id)


def sees(viewer: store.Viewer | None, rule: Rule) -> bool:
    """The same for one rule in hand."""
    return (
        viewer is None
        or rule.scope == GLOBAL
        or rule.created_by == AGENT + viewer.agent_id
        or rule.source_agent == viewer.agent_id
        or str(rule.target) == AGENT + viewer.agent_id
        or (rule.orchestration_id is not None and rule.orchestration_id == viewer.orchestration_id)
    )


def _own_source(tx: Tx, ctx: Context, source: str | None) -> str:
    me = str(ctx.actor.agent_id)
    if source not in (None, me):
        row = tx.one("routing.agent", {"agent_id": me})
        if row is None or source != row["name"]:
            raise Refused(
                f"{ctx.actor} may not have a rule for the events of {shorten(source)}",
                hint="leave source_agent out: an agent's rules hear its own events",
            )
    return me


def _scope(tx: Tx, ctx: Context, wanted: str | None) -> tuple[str, str | None]:
    kind, _, ref = (wanted or ("agent" if ctx.actor.kind == "agent" else GLOBAL)).partition(":")
    held = reach.grants(tx, ctx)
    me = ctx.actor.agent_id
    if kind == GLOBAL:
        if me is not None:
            raise Refused(f"{ctx.actor} may not have a global rule", hint="use scope agent or orchestration")
        return GLOBAL, None
    if kind == "orchestration":
        run = ref or held.orchestration_id
        if run is None or (me is not None and run != held.orchestration_id):
            raise Refused(
                f"scope {shorten(wanted or '')} is not within {ctx.actor}'s reach",
                hint=f"its orchestration is {held.orchestration_id or 'none'}",
            )
        row = tx.one("routing.orchestration", {"orchestration_id": run})
        if row is None:
            raise NotFound(f"unknown orchestration {shorten(run)}", hint="orchestration_list shows them")
        if row["state"] not in ("running", "suspended"):
            raise Conflict(f"orchestration {run} is {row['state']}", hint="a rule would end at once")
        return ORCHESTRATION + run, run
    if me is not None and ref not in ("", me):
        raise Refused(f"scope {shorten(wanted or '')} is not {ctx.actor}'s own", hint="use scope agent")
    if not ref and me is None:
        raise Refused("the scope agent says no agent", hint="write agent:<id>")
    agent = reach.find(tx, ctx, me or ref)
    if agent.life != "active":
        raise Conflict(f"agent {agent.name!r} ({agent.agent_id}) is {agent.life}", hint="a rule would end at once")
    return AGENT + agent.agent_id, agent.orchestration_id
