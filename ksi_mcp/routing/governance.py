"""Who may have which rule: read in the transaction that makes the change, so a right that is gone is gone.

A rule lies within an agent's reach when all of these do: whom it hears (`source_agent`, or the agents of its join),
whom it gives turns to, and with whom it lives and dies (`scope`). Event targets are free, since what a rule emits
has the lower authority of its author and of the event. Everybody of a run is heard only at the level
`orchestration`, by a rule of that run's scope.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ksi_mcp.agents import reach
from ksi_mcp.agents.model import Agent
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, Exhausted, Invalid, NotFound, Refused
from ksi_mcp.events.patterns import shorten
from ksi_mcp.ids import OrchestrationId
from ksi_mcp.permissions import Context, actor_of
from ksi_mcp.routing import store
from ksi_mcp.routing.joins import Join, Part, join_of
from ksi_mcp.routing.rules import GLOBAL, Rule, RuleDraft, compile_source
from ksi_mcp.routing.targets import AGENT, Target, Targets, targets_of

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
    target: Targets
    join: Join | None
    scope: str
    orchestration_id: str | None


def settle(tx: Tx, ctx: Context, draft: RuleDraft) -> Settled:
    """Resolve a draft's names and check that the actor may have such a rule.

    What is a record already, and no text, was settled before: it may have ended since, so that the rest of such a
    rule can still be changed. It has to lie within reach all the same.

    Raises:
        Refused: it reaches beyond the actor.
        NotFound: an agent or orchestration is not there, or not in the actor's sight.
        Conflict: it has ended.
        Invalid: two parts of its join turn out to be one.
    """
    held = _may_change(tx, ctx)
    scope, orchestration_id = _scope(tx, ctx, held, draft.scope)
    # A name means the agent of the run that the rule, or else the actor, belongs to.
    run = orchestration_id or held.orchestration_id
    inside = replace(ctx, orchestration_id=None if run is None else OrchestrationId(run))
    join, alive = join_of(draft.join), not isinstance(draft.target, Targets)

    def settled(place: Target) -> Target:
        if place.kind == "event":
            return place
        return replace(place, name=_agent(tx, inside, place.name, what="the target", alive=alive).agent_id)

    target = targets_of(draft.target).renamed(settled)
    if join is not None:
        join = _joined(tx, inside, join, alive=not isinstance(draft.join, Join))
    source = None if draft.source_agent is None else compile_source(draft.source_agent).text
    if ctx.actor.kind == "agent":
        source = _source_within(tx, inside, held, source, scope=scope, join=join)
    return Settled(
        source_agent=source,
        target=target,
        join=join,
        scope=scope,
        orchestration_id=orchestration_id,
    )


def check_reach(tx: Tx, ctx: Context, rule: Rule, *, action: str) -> None:
    """An agent changes only rules that lie within its reach: whom they hear, whom they reach, and with whom they live.

    Raises:
        Refused: a part of the rule lies beyond, or whoever made it wants nobody else to change it.
    """
    if ctx.actor.kind != "agent":
        return
    held = _may_change(tx, ctx)
    beyond = _beyond(tx, ctx, held, rule)
    if beyond is not None:
        what = beyond if sees(viewer_of(tx, ctx), rule) else "it"  # who may not look at it is not told what it says
        raise Refused(
            f"{ctx.actor} may not {action} rule {rule.rule_id!r}: {what} is beyond its routing level "
            f"{held.routing_level!r}",
            hint="an agent changes rules whose source, targets and scope lie within its reach",
        )
    if not rule.modifiable and rule.created_by != str(ctx.actor):
        raise Refused(
            f"{ctx.actor} may not {action} rule {rule.rule_id!r}: it is not modifiable, and {rule.created_by} made it",
            hint="ask whoever made it, or the operator",
        )


def author(tx: Tx, ctx: Context, rule: Rule) -> str:
    """Who answers for a rule that the actor changes: whoever made it, unless that was somebody not below the actor.

    A rule delivers on its author's authority: an agent that rewrites a rule of the operator, of a peer or of its
    parent must not speak for them from then on.
    """
    if ctx.actor.kind != "agent":
        return rule.created_by
    maker = actor_of(rule.created_by).agent_id
    below = maker is not None and reach.is_below(tx, maker, str(ctx.actor.agent_id))
    return rule.created_by if below else str(ctx.actor)


def keeps_from(tx: Tx, first: Rule, other: Rule) -> bool:
    """Whether an exclusive rule that delivered keeps the event from one of lower priority.

    One that an agent made does so where the agent may speak for both: it cannot hide what is told of it, or of its
    run, from those above. The rules that count are those of its own, of agents below it, and, for a rule that lives
    with a run, those of that run which are modifiable.
    """
    maker = actor_of(first.created_by).agent_id
    if maker is None or first.scope == GLOBAL:
        return True
    run = first.orchestration_id if first.scope.startswith(ORCHESTRATION) else None
    if run is not None and other.orchestration_id == run and other.modifiable:
        return True
    owner = actor_of(other.created_by).agent_id
    return owner is not None and (owner == maker or reach.is_below(tx, owner, maker))


def _may_change(tx: Tx, ctx: Context) -> reach.Grants:
    """What the actor holds, if it may change the table at all."""
    reach.require(tx, ctx, "routing_control", action="a change of the routing table")
    held = reach.grants(tx, ctx)
    if held.routing_level == "none":
        raise Refused(
            f"{ctx.actor} may not change the routing table: its routing level is 'none'",
            hint="ask whoever spawned it, or the operator",
        )
    return held


def _beyond(tx: Tx, ctx: Context, held: reach.Grants, rule: Rule) -> str | None:
    if held.routing_level == "global":
        return None
    kind, _, owner = rule.scope.partition(":")
    if kind == GLOBAL or (kind == "agent" and not reach.may_route(tx, ctx, owner)):
        return f"its scope {rule.scope}"
    if kind == "orchestration" and owner != held.orchestration_id:
        return f"its scope {rule.scope}"
    source = rule.source_agent
    if source is not None and tx.one("routing.agent", {"agent_id": source}) is not None:
        if not reach.may_route(tx, ctx, source):
            return f"its source {source}"
    elif not (_of_the_run(held, rule.scope) or (source is None and _hears_agents_only(rule.join))):
        return f"its source {source or 'everybody'}"
    for agent_id in (*rule.target.agents, *_agents_of(rule.join)):
        if not reach.may_route(tx, ctx, agent_id):
            return f"the agent {agent_id}"
    return None


def _of_the_run(held: reach.Grants, scope: str) -> bool:
    """Whether such a rule may hear everybody: of the run that it lives with, and that the actor may route."""
    return held.routing_level == "orchestration" and scope.startswith(ORCHESTRATION)


def _agents_of(join: Join | None) -> tuple[str, ...]:
    parts = () if join is None else join.parts
    return tuple(part.text.removeprefix(AGENT) for part in parts if part.pattern is None)


def _hears_agents_only(join: Join | None) -> bool:
    """A join of agents says whom it hears: it needs no source beside them."""
    return join is not None and len(_agents_of(join)) == len(join.parts)


def _agent(tx: Tx, ctx: Context, ref: str, *, what: str, alive: bool = True) -> Agent:
    """The agent that is meant, if the actor may route it."""
    agent = reach.find_routable(tx, ctx, ref, what=what)
    if alive and agent.life != "active":
        raise Conflict(
            f"{what} {agent.name!r} ({agent.agent_id}) is {agent.life}", hint="a rule is for living agents; name others"
        )
    return agent


def _joined(tx: Tx, ctx: Context, join: Join, *, alive: bool) -> Join:
    def settled(part: Part) -> Part:
        if part.pattern is not None:
            return part
        agent = _agent(tx, ctx, part.text.removeprefix(AGENT), what="the agent of the join", alive=alive)
        return replace(part, text=AGENT + agent.agent_id)

    parts = tuple(settled(part) for part in join.parts)
    if len({part.text for part in parts}) < len(parts):
        raise Invalid("all_of of the join names an agent twice", hint="each part once; a name and an id may be one")
    return replace(join, parts=parts)


def check_quota(tx: Tx, ctx: Context, quotas: Quotas) -> None:
    """Room for one more rule.

    Raises:
        Exhausted: the actor, or everybody together, has as many as there may be.
    """
    check_share(tx, ctx, quotas)
    if store.count(tx) >= quotas.total:
        raise Exhausted(
            f"the table has {quotas.total:,} rules, the most it can hold",
            hint="delete some with routing_delete_rule, or give them a ttl_s",
        )


def check_share(tx: Tx, ctx: Context, quotas: Quotas) -> None:
    """Room for one more rule that the actor answers for, whether it is new or was somebody else's.

    Raises:
        Exhausted: the actor is an agent, and has as many as there may be.
    """
    if ctx.actor.kind == "agent" and store.count(tx, str(ctx.actor)) >= quotas.per_agent:
        raise Exhausted(
            f"{ctx.actor} has {quotas.per_agent:,} rules, the most an agent can have",
            hint="delete some with routing_delete_rule, or give them a ttl_s",
        )


def viewer_of(tx: Tx, ctx: Context) -> store.Viewer | None:
    """Whose eyes a query has; None sees everything."""
    if ctx.actor.kind != "agent":
        return None
    held = reach.grants(tx, ctx)
    if held.routing_level == "global":  # what an agent may change, it can look at
        return None
    family = reach.family(tx, ctx.actor.agent_id)
    return store.Viewer(agents=family, orchestration_id=held.orchestration_id)


def sees(viewer: store.Viewer | None, rule: Rule) -> bool:
    """The same for one rule in hand."""
    if viewer is None or rule.scope == GLOBAL:
        return True
    if rule.orchestration_id is not None and rule.orchestration_id == viewer.orchestration_id:
        return True
    owners = (rule.created_by.removeprefix(AGENT), rule.scope.removeprefix(AGENT), rule.source_agent)
    return not viewer.agents.isdisjoint((*owners, *rule.target.agents, *_agents_of(rule.join)))


def _source_within(
    tx: Tx, ctx: Context, held: reach.Grants, source: str | None, *, scope: str, join: Join | None
) -> str | None:
    """Whom an agent's rule hears: somebody in its reach; everybody of its run only where it may route all of that."""
    if held.routing_level == "global":
        return source
    if source is None:
        if _of_the_run(held, scope) or _hears_agents_only(join):
            return None
        return scope.removeprefix(AGENT) if scope.startswith(AGENT) else str(ctx.actor.agent_id)
    if (glob := compile_source(source).glob) is None or not glob.literal:
        if _of_the_run(held, scope):
            return source
        raise Refused(
            f"{ctx.actor} may not have a rule for the events of {shorten(source)}",
            hint="name one agent; globs and templates need the routing level orchestration, and its scope",
        )
    return _agent(tx, ctx, source, what="the source", alive=False).agent_id


def _scope(tx: Tx, ctx: Context, held: reach.Grants, wanted: str | None) -> tuple[str, str | None]:
    kind, _, ref = (wanted or ("agent" if ctx.actor.kind == "agent" else GLOBAL)).partition(":")
    me = ctx.actor.agent_id
    if kind == GLOBAL:
        if held.routing_level != "global":
            raise Refused(f"{ctx.actor} may not have a global rule", hint="use scope agent or orchestration")
        return GLOBAL, None
    if kind == "orchestration":
        run = ref or held.orchestration_id
        if run is None or (held.routing_level != "global" and run != held.orchestration_id):
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
    if not ref and me is None:
        raise Invalid("the scope agent says no agent", hint="write agent:<id>")
    agent = _agent(tx, ctx, ref or str(me), what="the agent of the scope")
    return AGENT + agent.agent_id, agent.orchestration_id
