"""Supervision: what becomes of a prompt whose turn was lost for good, and of an agent that is to end with its work.

It hears the ends of turns from the router, so it never stands in the transaction that ends one. A finished turn is
never run again: a prompt that is taken up again is a new turn, whose cause is the lost one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ksi_mcp.agents import succession
from ksi_mcp.agents.model import Agent
from ksi_mcp.agents.policy import Policy, policy_of
from ksi_mcp.agents.roster import Roster
from ksi_mcp.config import SupervisionConfig
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, Refused
from ksi_mcp.events.journal import Recorder
from ksi_mcp.events.model import Event
from ksi_mcp.ids import RootId, TurnId
from ksi_mcp.permissions import SYSTEM, Context, system_context, within
from ksi_mcp.queues import moving
from ksi_mcp.queues.model import Turn, TurnDraft
from ksi_mcp.queues.session_queues import SessionQueues
from ksi_mcp.routing.router import Router
from ksi_mcp.routing.succession import hand_on_rules

ENDS = frozenset({"completion:result", "completion:failed", "completion:cancelled"})
MAX_REASON_CHARS = 500
MAX_QUESTION_CHARS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Respawned:
    """An agent, who took its place, and what went with it."""

    old: Agent
    new: Agent
    moved: tuple[TurnId, ...]
    rules: tuple[str, ...]


class Supervisor:
    """Acts by the policy of an agent, or of the configuration, when one of its turns ends with class `infra`.

    Bounds: a prompt is taken up again at most as often as the policy says, however often it moves; an agent is
    replaced by supervision at most `max_respawns` times in a row without one finished turn.
    """

    def __init__(
        self, journal: Recorder, queues: SessionQueues, roster: Roster, router: Router, config: SupervisionConfig
    ) -> None:
        self._journal = journal
        self._queues = queues
        self._roster = roster
        self._router = router
        self._config = config
        self._default = Policy(on_failure=config.policy, most=config.max_rescues)

    def listen(self) -> None:
        """Hear, from now on, how turns end."""
        self._router.listen(ENDS, self.turn_ended)

    def turn_ended(self, tx: Tx, event: Event) -> None:
        """React to the end of a turn: take its prompt up again, or let its agent end if that was its last."""
        if event.name == "completion:failed" and event.data.get("error_class") == "infra":
            self._rescue(tx, self._queues.get(tx, str(event.data["turn"])))
        values = {"agent_id": event.agent_id, "event_id": event.event_id}
        if event.agent_id is not None and tx.one("agents.drained", values) is not None:
            agent = self._roster.get(tx, event.agent_id)
            self._end(tx, _context(event.root_id, f"event:{event.event_id}", event.depth, agent), agent)

    # ------------------------------------------------------------------------------ lost prompts

    def _rescue(self, tx: Tx, lost: Turn) -> None:
        was = self._roster.get(tx, lost.session_id)
        stored = was.settings.supervision
        policy = self._default if stored is None else policy_of(stored)
        agent = succession.heir_of(tx, self._roster, was)
        if agent is None or policy.on_failure == "none":
            return
        ctx = _context(lost.root_id, f"turn:{lost.turn_id}", lost.depth, agent)
        if lost.rescues >= policy.most:
            self._give_up(tx, ctx, agent, lost, f"it was taken up again {lost.rescues} times")
            return
        wish = policy.on_failure
        if agent.agent_id != was.agent_id:
            wish = "retry"  # who stands in its place now begins afresh
        elif wish == "respawn" and self._held(tx, agent):
            wish = "retry"  # nobody is made in a run that stands still; the prompt is held with the rest
        match wish:
            case "retry":
                turn = moving.put_first(tx, self._queues, _again(lost, agent), rescues=lost.rescues + 1)
                self._rescued(tx, ctx, lost, turn, agent=agent, policy=wish)
            case "respawn":
                self._replace(tx, ctx, agent, lost)
            case "redistribute":
                self._redistribute(tx, ctx, agent, lost)
            case _:
                self._escalate(tx, ctx, agent, lost)

    def _replace(self, tx: Tx, ctx: Context, agent: Agent, lost: Turn) -> None:
        most = self._config.max_respawns
        if (row := succession.barren_row(tx, agent, most=most)) >= most:
            self._give_up(tx, ctx, agent, lost, f"it was replaced {row} times in a row and finished nothing")
            return
        reason = f"turn {lost.turn_id} was lost: {lost.error or lost.state}"
        done = self.respawn(tx, ctx, agent, reason=reason, lost=lost)
        first = self._queues.get(tx, done.moved[0])
        self._rescued(tx, ctx, lost, first, agent=done.new, policy="respawn")

    def _redistribute(self, tx: Tx, ctx: Context, agent: Agent, lost: Turn) -> None:
        peer = succession.least_busy_peer(tx, self._roster, agent)
        if peer is None:
            self._escalate(tx, ctx, agent, lost)
            return
        turn = moving.put_last(tx, self._queues, _again(lost, peer), rescues=lost.rescues + 1)
        moved = moving.move_waiting(tx, agent.agent_id, peer.agent_id, provider=peer.provider, skip_circles=True)
        self._rescued(tx, ctx, lost, turn, agent=peer, policy="redistribute", moved=len(moved.turn_ids))

    def _escalate(self, tx: Tx, ctx: Context, agent: Agent, lost: Turn) -> None:
        text = f"Agent {agent.name!r} could not answer ({(lost.error or lost.state)[:MAX_REASON_CHARS]}). Its reply?"
        question = {"kind": "escalation", "text": text, "prompt": lost.prompt[:MAX_QUESTION_CHARS]}
        turn = moving.put_first(
            tx, self._queues, _again(lost, agent), rescues=lost.rescues + 1, question={**question, "lost": lost.turn_id}
        )
        facts = {"agent": agent.agent_id, "agent_name": agent.name, "turn": turn.turn_id, "lost": lost.turn_id}
        self._record(tx, "agent:escalated", {**facts, **question}, ctx, agent)

    def _give_up(self, tx: Tx, ctx: Context, agent: Agent, lost: Turn, reason: str) -> None:
        facts = {"agent": agent.agent_id, "agent_name": agent.name, "turn": lost.turn_id, "reason": reason}
        self._record(tx, "agent:given_up", {**facts, "error": (lost.error or "")[:MAX_REASON_CHARS]}, ctx, agent)

    def _rescued(
        self, tx: Tx, ctx: Context, lost: Turn, turn: Turn, *, agent: Agent, policy: str, moved: int | None = None
    ) -> None:
        facts: dict[str, Any] = {
            "agent": agent.agent_id,
            "agent_name": agent.name,
            "policy": policy,
            "lost": lost.turn_id,
            "turn": turn.turn_id,
            "rescues": turn.rescues,
        }
        if moved is not None:
            facts |= {"from": lost.session_id, "moved": moved}
        self._record(tx, "agent:rescued", facts, ctx, agent)

    def _held(self, tx: Tx, agent: Agent) -> bool:
        if agent.orchestration_id is None:
            return False
        run = tx.one("agents.max_depth", {"orchestration_id": agent.orchestration_id})
        return run is None or run["state"] != "running"

    # ---------------------------------------------------------------------------------- successors

    def respawn(self, tx: Tx, ctx: Context, agent: Agent, *, reason: str, lost: Turn | None = None) -> Respawned:
        """Put a new agent of the same making into an agent's place, with all that the old one had not finished.

        Its turns come in order, the `lost` prompt first; one at work is taken from its worker, which is paid for
        the call under way. Its rules, children, runs and limits go on with the new one.

        Raises:
            Conflict: the agent, or its run, has ended.
            Refused: an agent would replace itself.
        """
        if ctx.slot is not None and agent.agent_id == ctx.actor.agent_id:
            raise Refused("an agent cannot replace itself in its own turn", hint="ask whoever spawned it")
        reason = reason[:MAX_REASON_CHARS]
        new = succession.replace_agent(tx, ctx, self._roster, self._journal, agent, reason=reason)
        first: tuple[TurnId, ...] = ()
        if lost is not None:
            turn = moving.put_first(tx, self._queues, _again(lost, new), rescues=lost.rescues + 1)
            first = (turn.turn_id,)
        moved = (*first, *moving.move_all(tx, agent.agent_id, new.agent_id))
        succession.hand_on_injections(tx, agent, new, moved)
        server = within(system_context(ctx), agent.orchestration_id)
        rules = hand_on_rules(tx, self._journal, server, old=agent.agent_id, new=new.agent_id)
        facts = {
            "old": agent.agent_id,
            "new": new.agent_id,
            "name": new.name,
            "reason": reason,
            "moved": len(moved),
            "rules": len(rules),
            "by": str(ctx.actor),
        }
        self._record(tx, "agent:respawned", facts, server, new)
        return Respawned(old=agent, new=self._roster.get(tx, new.agent_id), moved=moved, rules=rules)

    # ------------------------------------------------------------------------------------ draining

    def drain(self, tx: Tx, ctx: Context, agent: Agent, *, reason: str) -> bool:
        """Let an agent take no more messages and end with its last turn; whether it has ended at once.

        Raises:
            Conflict: it has ended.
        """
        if agent.life != "active":
            raise Conflict(f"agent {agent.name!r} is {agent.life}", hint="nothing was changed")
        changed = tx.run("agents.drain", {"agent_id": agent.agent_id})
        if agent.pending == 0 and tx.one("agents.unrouted_end", {"agent_id": agent.agent_id}) is None:
            self._end(tx, ctx, agent, reason=reason)
            return True
        if changed:
            facts = {"agent": agent.agent_id, "name": agent.name, "pending": agent.pending}
            self._record(tx, "agent:draining", {**facts, "reason": reason[:MAX_REASON_CHARS]}, ctx, agent)
        return False

    def _end(self, tx: Tx, ctx: Context, agent: Agent, *, reason: str = "its last turn has ended") -> None:
        self._roster.end(tx, ctx, agent, life="terminated", reason=reason[:MAX_REASON_CHARS])
        self._router.end_scope(tx, f"agent:{agent.agent_id}")

    def _record(self, tx: Tx, name: str, facts: dict[str, Any], ctx: Context, agent: Agent) -> None:
        inside = within(ctx, agent.orchestration_id)
        self._journal.record(tx, name, facts, inside, agent_id=agent.agent_id)


def _context(root_id: str, cause_id: str, depth: int, agent: Agent) -> Context:
    return within(
        Context(actor=SYSTEM, root_id=RootId(root_id), cause_id=cause_id, depth=depth), agent.orchestration_id
    )


def _again(lost: Turn, agent: Agent) -> TurnDraft:
    """The same prompt as a new turn: as deep in its chain, for whoever wants the reply, because of the lost one."""
    return TurnDraft(
        session_id=agent.agent_id,
        provider=agent.provider,
        prompt=lost.prompt,
        orchestration_id=agent.orchestration_id,
        created_by=lost.created_by,
        cause_id=f"turn:{lost.turn_id}",
        root_id=lost.root_id,
        hops=lost.hops,
        depth=lost.depth,
        reply_event=lost.reply_event,
        timeout_s=lost.timeout_s,
        op_class=lost.op_class,
        expect=lost.expect,
        cache=lost.cache,
    )
