"""The agents: made, addressed, listed, ended. Every function runs inside the caller's transaction."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Final, Literal

from ksi_mcp.agents import hearing, reach, store
from ksi_mcp.agents.history import PastTurn
from ksi_mcp.agents.injections import release_injections
from ksi_mcp.agents.levels import allowed_level
from ksi_mcp.agents.model import (
    MAX_MESSAGE_CHARS,
    MAX_SYSTEM_CHARS,
    Agent,
    AgentLife,
    AgentSpec,
    agent_of,
    check_agent_name,
    check_capabilities,
    check_within,
    encode_settings,
)
from ksi_mcp.agents.servers import check_servers_within
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import GLOBAL
from ksi_mcp.db import Row, Tx
from ksi_mcp.db.kept import Kept
from ksi_mcp.errors import Conflict, Exhausted, Invalid, NotFound, Refused
from ksi_mcp.events.journal import Recorder
from ksi_mcp.events.model import Event
from ksi_mcp.events.store import MAX_CURSOR_CHARS
from ksi_mcp.ids import AgentId, TurnId, new_id
from ksi_mcp.permissions import Context, agent_actor
from ksi_mcp.queues.model import OpClass, Turn, TurnDraft
from ksi_mcp.queues.session_queues import SessionQueues

_SEEN: Final = Kept(agent_of, size=256)
"""Clients look at the living again and again."""
MAX_HOPS = 16
"""Deliveries since the last turn."""
DEFAULT_MAX_DEPTH = 256
"""Turns since the first cause, outside of a run that says otherwise."""
MAX_AGENTS_PER_RUN = 20_000
MAX_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFilter:
    """Which agents a list is for; None does not restrict."""

    orchestration_id: str | None = None
    parent_id: str | None = None
    composition: str | None = None
    status: str | None = None
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How a message is to be sent."""

    reply_event: str | None = None
    timeout_s: float | None = None
    op_class: OpClass = "analysis"
    priority: int = 0
    """`INJECTED` goes before what waits already."""
    expect: str | None = None
    """JSON: what the reply must be like, checked already; None: what the agent's settings say."""
    cache: Literal["exact", "semantic"] | None = None
    batched: bool = False
    """It goes with a batch of its provider, at half the price."""
    turn_id: TurnId | None = None
    """See `TurnDraft`."""


class Roster:
    """Who exists, and who may do what."""

    def __init__(self, journal: Recorder, queues: SessionQueues, ledger: Ledger) -> None:
        self._journal = journal
        self._queues = queues
        self._ledger = ledger

    # ---------------------------------------------------------------------------------- making

    def spawn(self, tx: Tx, ctx: Context, spec: AgentSpec) -> Agent:
        """Make an agent with its session and account.

        Raises:
            Conflict: a living agent has that name.
            Refused: an agent asks for its child what it does not hold itself.
            Exhausted: the run has as many agents as one run can have.
        """
        spec = self._within_reach(tx, ctx, spec)
        check_agent_name(spec.name)
        check_capabilities(spec.capabilities)
        if len(spec.system) > MAX_SYSTEM_CHARS:
            raise Invalid(f"the prompt has {len(spec.system):,} characters, the limit is {MAX_SYSTEM_CHARS:,}")
        place = {"orchestration_id": spec.orchestration_id, "name": spec.name}
        taken = tx.one("agents.live_name", place)
        if taken is not None:
            raise Conflict(
                f"agent name {spec.name!r} is taken by {taken['agent_id']}",
                hint="choose another name, or terminate that agent first",
            )
        if tx.one("agents.one", {"agent_id": spec.name}) is not None:  # rules that hear that agent would hear this one
            raise Conflict(f"agent name {spec.name!r} is the id of an agent", hint="choose another name")
        if spec.orchestration_id is not None:
            self._check_run(tx, spec.orchestration_id)
        parent = None if spec.parent_id is None else self.get(tx, spec.parent_id)
        level = allowed_level(tx, ctx, spec.routing_level, capabilities=spec.capabilities, parent=parent)
        agent_id = AgentId(new_id("a"))
        tx.run(
            "agents.insert",
            {
                **place,
                "agent_id": agent_id,
                "composition": spec.composition,
                "parent_id": spec.parent_id,
                "provider": spec.provider,
                "model": spec.model,
                "system": spec.system,
                "capabilities": json.dumps(sorted(spec.capabilities)),
                "settings": encode_settings(spec.settings),
                "routing_level": level,
                "subscription_level": spec.subscription_level,
                "error_level": spec.error_level,
                "wake": int(spec.wake),
                "created_by": str(ctx.actor),
                "now_ms": tx.now_ms,
            },
        )
        self._queues.open_session(tx, agent_id)
        self._ledger.open(tx, agent_id, parent_id=spec.parent_id or spec.orchestration_id or GLOBAL, limits=spec.limits)
        facts = {
            "agent": agent_id,
            "name": spec.name,
            "composition": spec.composition,
            "parent": spec.parent_id,
            "capabilities": sorted(spec.capabilities),
            "routing_level": level,
        }
        self._journal.record(tx, "agent:spawned", facts, ctx, agent_id=agent_id, orchestration_id=spec.orchestration_id)
        return self.get(tx, agent_id)

    def free_name(self, tx: Tx, wanted: str, orchestration_id: str | None) -> str:
        """`wanted`, or `wanted-2`, `wanted-3` ... if it is taken."""
        prefix = wanted.replace("!", "!!").replace("_", "!_").replace("%", "!%") + "-%"
        rows = tx.all("agents.names_like", {"orchestration_id": orchestration_id, "name": wanted, "prefix": prefix})
        taken = {row["name"] for row in rows}
        if wanted not in taken:
            return wanted
        return next(name for i in range(2, len(taken) + 3) if (name := f"{wanted}-{i}") not in taken)

    def _within_reach(self, tx: Tx, ctx: Context, spec: AgentSpec) -> AgentSpec:
        if ctx.actor.kind == "agent":
            held = reach.grants(tx, ctx)
            parent_id = spec.parent_id or ctx.actor.agent_id
            if parent_id is not None and parent_id != ctx.actor.agent_id:
                reach.find_below(tx, ctx, parent_id, action="spawn a child of")
            if spec.orchestration_id not in (None, held.orchestration_id):
                raise Refused(f"{ctx.actor} can only spawn into its own orchestration")
            spec = replace(spec, parent_id=parent_id, orchestration_id=held.orchestration_id)
            check_within(spec.capabilities, held.capabilities or frozenset(), holder=str(ctx.actor))
        if spec.parent_id is None:
            return spec
        parent = self.get(tx, spec.parent_id)
        if parent.life != "active":
            raise Conflict(f"agent {parent.name!r} has ended", hint="choose a living parent, or none")
        check_within(spec.capabilities, parent.capabilities, holder=f"parent {parent.name!r}")
        check_servers_within(spec.settings.mcp_servers, parent.settings.mcp_servers, holder=f"parent {parent.name!r}")
        if spec.orchestration_id not in (None, parent.orchestration_id):
            raise Invalid(
                f"parent {parent.name!r} lives in {parent.orchestration_id or 'no orchestration'}, "
                f"not in {spec.orchestration_id}"
            )
        return replace(spec, orchestration_id=parent.orchestration_id)

    def _check_run(self, tx: Tx, orchestration_id: str) -> None:
        run = tx.one("agents.max_depth", {"orchestration_id": orchestration_id})
        if run is None:
            raise NotFound(f"unknown orchestration {orchestration_id[:80]!r}", hint="orchestration_list shows them")
        if run["state"] != "running":
            hint = "resume it first" if run["state"] == "suspended" else "start a new one"
            raise Conflict(f"orchestration {orchestration_id} is {run['state']}", hint=hint)
        if len(tx.all("agents.live_in_orchestration", {"orchestration_id": orchestration_id})) >= MAX_AGENTS_PER_RUN:
            raise Exhausted(f"orchestration {orchestration_id} has {MAX_AGENTS_PER_RUN:,} agents, the most it can have")

    # -------------------------------------------------------------------------------- speaking

    def send(self, tx: Tx, ctx: Context, agent: Agent, message: str, how: Delivery) -> Turn:
        """Put a message into an agent's session; it becomes a turn.

        Raises:
            Conflict: the agent has ended, or is about to.
            Refused: the chain of causes is as long as it may get.
        """
        if agent.life != "active":
            raise Conflict(f"agent {agent.name!r} is {agent.life}", hint="agent_list(status='active') shows the living")
        if agent.draining:
            raise Conflict(
                f"agent {agent.name!r} is draining: it ends with its last turn and takes no more messages",
                hint="send to another agent, or spawn one under another name",
            )
        if not message.strip():
            raise Invalid("the message is empty")
        if len(message) > MAX_MESSAGE_CHARS:
            raise Invalid(f"the message has {len(message):,} characters, the limit is {MAX_MESSAGE_CHARS:,}")
        if how.timeout_s is not None and not 0 < how.timeout_s <= MAX_TIMEOUT_S:
            raise Invalid(f"timeout_s is {how.timeout_s}", hint=f"it goes up to {MAX_TIMEOUT_S:g} seconds")
        max_depth = self.max_depth(tx, agent.orchestration_id)
        if ctx.hops + 1 > MAX_HOPS or ctx.depth + 1 > max_depth:
            raise Refused(
                f"this chain of causes ({ctx.root_id}) is {ctx.depth} turns and {ctx.hops} deliveries long",
                hint=f"the limits are {max_depth} and {MAX_HOPS}; end the loop, or start a run with a higher max_depth",
            )
        turn = self._queues.enqueue(
            tx,
            TurnDraft(
                session_id=agent.agent_id,
                provider=agent.provider,
                prompt=message,
                orchestration_id=agent.orchestration_id,
                created_by=str(ctx.actor),
                cause_id=ctx.cause_id,
                root_id=ctx.root_id,
                hops=ctx.hops + 1,
                depth=ctx.depth + 1,
                reply_event=how.reply_event,
                timeout_s=how.timeout_s,
                op_class=how.op_class,
                priority=how.priority,
                expect=how.expect,
                cache=how.cache,
                batched=how.batched,
                turn_id=how.turn_id,
            ),
        )
        facts = {"turn": turn.turn_id, "agent": agent.agent_id, "agent_name": agent.name, "from": str(ctx.actor)}
        self._journal.record(
            tx,
            "completion:queued",
            facts,
            ctx,
            agent_id=agent.agent_id,
            orchestration_id=agent.orchestration_id,
            routable=False,
        )
        return turn

    def deliver_turn(self, tx: Tx, ctx: Context, agent_id: str, prompt: str) -> str:
        """What the router calls for a rule with an agent as its target; the id of the turn."""
        return self.send(tx, ctx, self.get(tx, agent_id), prompt, Delivery()).turn_id

    def hear(self, tx: Tx, event: Event) -> None:
        """What the router calls for every event: those above its agent hear it, as their levels say."""
        hearing.hear(tx, self._journal, event, wake=self.deliver_turn)

    def max_depth(self, tx: Tx, orchestration_id: str | None) -> int:
        """How many turns a chain of causes may have there."""
        if orchestration_id is None:
            return DEFAULT_MAX_DEPTH
        row = tx.one("agents.max_depth", {"orchestration_id": orchestration_id})
        return DEFAULT_MAX_DEPTH if row is None else int(row["max_depth"])

    # --------------------------------------------------------------------------------- looking

    def get(self, tx: Tx, agent_id: str) -> Agent:
        """An agent by its id, whoever asks.

        Raises:
            NotFound: there is none.
        """
        row: Row | None = tx.one("agents.one", {"agent_id": agent_id})
        if row is None:
            raise NotFound(f"unknown agent {agent_id[:80]!r}")
        return agent_of(row)

    def page(
        self, tx: Tx, ctx: Context, wanted: AgentFilter, *, limit: int, cursor: str | None
    ) -> tuple[list[Agent], str | None]:
        """Agents in the order of their making, and where the next page begins."""
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) <= MAX_CURSOR_CHARS):
            raise Invalid(f"cursor {cursor[:40]!r} is not one of ours", hint="pass the `cursor` of the last page")
        seen = reach.visible(tx, ctx)
        rows = tx.all(
            "agents.page",
            {
                "orchestration_id": wanted.orchestration_id,
                "parent_id": wanted.parent_id,
                "composition": None if wanted.composition is None else _prefix(wanted.composition) + "@%",
                "life": "active" if wanted.status in ("idle", "busy", "suspended") else wanted.status,
                "busy": {"idle": 0, "busy": 1}.get(wanted.status or ""),
                "suspended": {"idle": 0, "busy": 0, "suspended": 1}.get(wanted.status or ""),
                "capabilities": json.dumps(wanted.capabilities) if wanted.capabilities else None,
                "visible": None if seen is None else json.dumps(sorted(seen)),
                "after": int(cursor or 0),
                "limit": limit + 1,
            },
        )
        agents = _SEEN.of(rows)
        return agents[:limit], str(agents[limit - 1].n) if len(agents) > limit else None

    def history(self, tx: Tx, agent: Agent, *, limit: int) -> list[PastTurn]:
        """The newest `limit` finished turns of an agent, oldest first."""
        return store.past_turns(tx, agent.agent_id, limit=limit)

    # ---------------------------------------------------------------------------------- ending

    def end(self, tx: Tx, ctx: Context, agent: Agent, *, life: AgentLife, reason: str) -> list[Turn]:
        """End an agent: what waits for it is cancelled, its name is free; the turns cancelled (none if it had ended).

        The turn in which an agent ends itself is not cancelled by that: it may still say its last word.
        """
        if tx.run("agents.end", {"agent_id": agent.agent_id, "status": life, "now_ms": tx.now_ms}) == 0:
            return []
        tx.run("agents.forget_heard", {"agent_id": agent.agent_id, "nth": None})
        cancelled = [
            turn
            for turn_id in self._queues.unfinished(tx, agent.agent_id)
            if not (ctx.slot is not None and turn_id == ctx.slot.turn_id)
            if (turn := self._cancel(tx, ctx, turn_id, agent, reason=reason)) is not None
        ]
        self._journal.record(
            tx,
            f"agent:{life}",
            {"agent": agent.agent_id, "name": agent.name, "reason": reason, "cancelled": len(cancelled)},
            ctx,
            agent_id=agent.agent_id,
            orchestration_id=agent.orchestration_id,
        )
        return cancelled

    def cancel_turn(self, tx: Tx, ctx: Context, turn: Turn, *, reason: str) -> Turn | None:
        """Cancel one turn, whoever runs it; its session goes on. None if it had ended before, a no-op."""
        return self._cancel(tx, ctx, turn.turn_id, self.get(tx, turn.session_id), reason=reason)

    def _cancel(self, tx: Tx, ctx: Context, turn_id: str, agent: Agent, *, reason: str) -> Turn | None:
        turn = self._queues.cancel(tx, turn_id, reason=reason)
        if turn is None:
            return None
        release_injections(tx, turn_id)
        facts: dict[str, object] = {
            "turn": turn_id,
            "agent": agent.agent_id,
            "agent_name": agent.name,
            "reason": reason,
        }
        because = replace(ctx, cause_id=f"turn:{turn_id}")
        run = agent.orchestration_id
        told = {**facts, "attempt": turn.attempt}
        self._journal.record(tx, "completion:cancelled", told, because, agent_id=agent.agent_id, orchestration_id=run)
        if turn.reply_event is not None:  # whoever gathers replies must hear of this one, too
            reply = {**facts, "status": turn.state, "text": ""}
            # Its name was chosen by whoever sent the message: it comes from the agent that was asked, never from
            # whoever cancels, who may be the operator.
            asked = replace(because, actor=agent_actor(agent.agent_id), slot=None)
            self._journal.record(tx, turn.reply_event, reply, asked, agent_id=agent.agent_id, orchestration_id=run)
        return turn

    def living_in(self, tx: Tx, orchestration_id: str) -> list[Agent]:
        """The living agents of a run, in the order of their making."""
        rows = tx.all("agents.live_in_orchestration", {"orchestration_id": orchestration_id})
        return [self.get(tx, row["agent_id"]) for row in rows]


def _prefix(text: str) -> str:
    return text.replace("!", "!!").replace("_", "!_").replace("%", "!%")
