"""Another run from a checkpoint: the same agents, conversations, rules and work, and an account of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ksi_mcp.agents import reach
from ksi_mcp.agents.levels import level_in_new_run
from ksi_mcp.agents.model import check_within
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import GLOBAL, Limits
from ksi_mcp.db import Tx
from ksi_mcp.errors import Exhausted
from ksi_mcp.events.journal import Recorder
from ksi_mcp.ids import AgentId, HoldId, OrchestrationId, RuleId, TurnId, new_id
from ksi_mcp.orchestrations.checkpoints import Checkpoint, check_not_left
from ksi_mcp.orchestrations.model import Orchestration
from ksi_mcp.orchestrations.restoring import Restored, record_restored
from ksi_mcp.orchestrations.snapshot import Snapshot, lane_state
from ksi_mcp.permissions import Context, within
from ksi_mcp.routing import store as rules_store
from ksi_mcp.routing.governance import Quotas
from ksi_mcp.routing.pausing import restore_joins, restore_rules
from ksi_mcp.routing.targets import AGENT


class Forker:
    """Makes a run of a checkpoint, in one transaction of the caller's.

    Its history is copied, so it is complete and its own. Ids are new, names are not. Its accounts have the limits of
    the checkpoint and nothing spent. What the first run bought since is given to the very same requests here, too.
    """

    def __init__(self, journal: Recorder, ledger: Ledger) -> None:
        self._journal = journal
        self._ledger = ledger

    def fork(self, tx: Tx, ctx: Context, run: Orchestration, checkpoint: Checkpoint, snapshot: Snapshot) -> Restored:
        """Make the run; it is suspended.

        Raises:
            Refused: an agent of it held more than the actor may grant.
            Conflict: the checkpoint lies in a time line that was left.
            Exhausted: the table of rules has no room for its rules.
        """
        check_not_left(checkpoint)
        held = reach.grants(tx, ctx)
        for agent in snapshot.living if held.capabilities is not None else ():
            rights, actor = frozenset(json.loads(agent["capabilities"])), str(ctx.actor)
            check_within(rights, held.capabilities or frozenset(), holder=actor)
            reach.check_servers(tx, ctx, json.loads(agent["settings"]).get("mcp_servers"))
            level_in_new_run(held, agent["routing_level"], capabilities=rights, starter=actor)
        most = Quotas().total
        if rules_store.count(tx) + len(snapshot.rules) > most:
            raise Exhausted(f"the table would have more than {most:,} rules, the most it can hold", hint="end a run")
        new_run = OrchestrationId(new_id("o"))
        inside = within(ctx, new_run)
        agents = {agent["agent_id"]: new_id("a") for agent in snapshot.living}
        values = {
            "orchestration_id": run.orchestration_id,
            "new_id": new_run,
            "created_by": str(ctx.actor),
            "now_ms": tx.now_ms,
            "draining": snapshot.draining,
        }
        tx.run("orchestrations.fork_run", values)
        # What an agent starts is paid from its own account, so no run can be a way around a limit.
        parent = ctx.actor.agent_id or snapshot.account["parent_id"] or GLOBAL
        self._open(tx, new_run, parent, snapshot.account)
        facts = {
            "orchestration": new_run,
            "pattern": f"{run.pattern}@{run.pattern_hash[:12]}",
            "orchestrator": run.orchestrator,
            "agents": [agent["name"] for agent in snapshot.living],
        }
        self._journal.record(tx, "orchestration:started", facts, inside)
        self._agents(tx, inside, new_run, agents, snapshot)
        turns = self._history(tx, new_run, agents, snapshot)
        self._work(tx, agents, turns, snapshot)
        reason = f"made from checkpoint {checkpoint.checkpoint_id}"
        rules = _rules(snapshot, new_run, agents)
        restore_rules(tx, self._journal, inside, new_run, list(rules.values()), reason=reason)
        restore_joins(tx, new_run, _joins(snapshot, new_run, agents, rules))
        for delayed in snapshot.delayed:
            context = _of_others(json.loads(delayed["context"]), new_run, agents)
            copied = {**delayed, "context": json.dumps(context), "orchestration_id": new_run}
            tx.run("orchestrations.put_delayed", copied)
        self._undelivered(tx, snapshot, new_run, agents)
        done = Restored(
            orchestration_id=new_run,
            left=0,
            put_back=sum(turn["turn_id"] in turns for turn in snapshot.turns),
            reusable=self._reusable(tx, new_run, agents, snapshot),
            effects=(),
            effects_kept=0,
        )
        record_restored(tx, self._journal, inside, checkpoint, done, origin=run.orchestration_id)
        return done

    def _open(self, tx: Tx, account_id: str, parent_id: str, row: Mapping[str, Any]) -> None:
        self._ledger.open(tx, account_id, parent_id=parent_id, limits=Limits())
        tx.run("orchestrations.back_limits", {**row, "account_id": account_id, "tighter": 0})

    def _agents(
        self, tx: Tx, ctx: Context, new_run: OrchestrationId, agents: Mapping[str, str], snapshot: Snapshot
    ) -> None:
        waiting = {agent["agent_id"]: agent for agent in snapshot.living}
        while waiting:
            # Parents first; whoever took over from another may have children older than itself.
            ready = [agent for agent in waiting.values() if agent["parent_id"] not in waiting]
            for agent in ready or list(waiting.values())[:1]:
                del waiting[agent["agent_id"]]
                new_agent, parent = AgentId(agents[agent["agent_id"]]), agents.get(agent["parent_id"] or "")
                values = {
                    **agent,
                    "new_id": new_agent,
                    "new_parent_id": parent,
                    "new_run_id": new_run,
                    "created_by": str(ctx.actor),
                    "now_ms": tx.now_ms,
                }
                tx.run("orchestrations.fork_agent", values)
                tx.run("queues.open_session", {"session_id": new_agent})
                self._open(tx, new_agent, parent or new_run, agent)
                facts = {
                    "agent": new_agent,
                    "name": agent["name"],
                    "parent": parent,
                    "capabilities": json.loads(agent["capabilities"]),
                }
                self._journal.record(tx, "agent:spawned", facts, ctx, agent_id=new_agent, routable=False)

    def _history(
        self, tx: Tx, new_run: OrchestrationId, agents: Mapping[str, str], snapshot: Snapshot
    ) -> dict[str, str]:
        """Copy what was said by then; the new ids of turns by their old ones."""
        pairs = json.dumps(list(agents.items()))
        marks = {"agents": pairs, "last_turn": snapshot.last_turn, "turn_ids": json.dumps(snapshot.turn_ids)}
        past = tx.all("orchestrations.fork_past", marks)
        ids = {row["turn_id"]: str(TurnId(new_id("t"))) for row in past}
        mine: list[list[Any]] = [[row["turn_id"], ids[row["turn_id"]], row["session_id"], None] for row in past]
        for turn in snapshot.turns:
            if turn["session_id"] in agents:
                ids[turn["turn_id"]] = new_id("t")
                mine.append([turn["turn_id"], ids[turn["turn_id"]], turn["session_id"], turn["rounds"]])
        hold = HoldId(new_id("h"))
        tx.run("completions.free_hold", {"hold_id": hold, "account_id": new_run, "turn_id": f"fork:{new_run}"})
        had = [[turn_id, *place] for turn_id, places in snapshot.tools.items() for place in places]
        values = {
            "turns": json.dumps(mine),
            "agents": pairs,
            "new_run_id": new_run,
            "hold_id": hold,
            "had": json.dumps(had),
        }
        tx.run("orchestrations.fork_turns", values)
        tx.run("orchestrations.fork_calls", values)
        tx.run("orchestrations.fork_tools", values)
        tx.run("orchestrations.fork_notes", values)
        tx.run("orchestrations.fork_injections", values)
        return ids

    def _work(self, tx: Tx, agents: Mapping[str, str], turns: Mapping[str, str], snapshot: Snapshot) -> None:
        """Put what had not ended by then into the lanes."""
        for turn in snapshot.turns:
            if turn["turn_id"] not in turns:
                continue
            lane = lane_state(turn, taken_at_ms=snapshot.at_ms, now_ms=tx.now_ms)
            own = {
                "turn_id": turns[turn["turn_id"]],
                "session_id": agents[turn["session_id"]],
                "moved_from": agents.get(turn["moved_from"] or ""),
                "cost_usd_micros": 0,
                "tokens": 0,
            }
            tx.run("orchestrations.back_turn", {**turn, **lane, **own})
        for agent in snapshot.living:
            session = {"session_id": agents[agent["agent_id"]], "tail": agent["tail"]}
            tx.run("orchestrations.back_session", session)
        for row in snapshot.heard:
            if row["agent_id"] in agents:
                emitter = agents.get(row["source_agent"], row["source_agent"])
                copied = {**row, "agent_id": agents[row["agent_id"]], "source_agent": emitter}
                tx.run("orchestrations.put_heard", copied)
        pairs = json.dumps(list(agents.items()))
        for injection_id, turn_id in snapshot.injections:
            if turn_id is None or turn_id in turns:
                bound = None if turn_id is None else turns[turn_id]
                values = {"injection_id": injection_id, "turn_id": bound, "agents": pairs}
                tx.run("orchestrations.fork_injection", values)

    def _undelivered(self, tx: Tx, snapshot: Snapshot, new_run: OrchestrationId, agents: Mapping[str, str]) -> None:
        for event_id in snapshot.outbox:
            row = tx.one("orchestrations.fork_event", {"event_id": event_id})
            if row is None:  # nobody needed it any more
                continue
            values = {name: row[name] for name in row.keys()}  # noqa: SIM118  a row iterates over its values
            values |= {
                "orchestration_id": new_run,
                "agent_id": agents.get(row["agent_id"] or "", row["agent_id"]),
                "source": _actor(row["source"], agents),
                "at_ms": tx.now_ms,
            }
            made = tx.one("events.insert", values)
            if made is not None:
                tx.run("events.to_outbox", {"event_id": made["event_id"]})

    def _reusable(self, tx: Tx, new_run: OrchestrationId, agents: Mapping[str, str], snapshot: Snapshot) -> int:
        values = {
            "agents": json.dumps(list(agents.items())),
            "last_turn": snapshot.last_turn,
            "turn_ids": json.dumps(snapshot.turn_ids),
        }
        since = [row["turn_id"] for row in tx.all("orchestrations.fork_since", values)]
        bought = {
            "orchestration_id": new_run,
            "turn_ids": json.dumps(since),
            "last_call": snapshot.last_call,
            "rounds": json.dumps([[turn["turn_id"], turn["rounds"]] for turn in snapshot.turns]),
        }
        return tx.run("orchestrations.make_reusable", bought)


def _actor(source: str, agents: Mapping[str, str]) -> str:
    agent_id = source.removeprefix(AGENT)
    return AGENT + agents[agent_id] if source.startswith(AGENT) and agent_id in agents else source


def _of_others(context: dict[str, Any], new_run: str, agents: Mapping[str, str]) -> dict[str, Any]:
    """The context of a delayed event, as one of the new run's."""
    return {**context, "actor": _actor(context["actor"], agents), "orchestration_id": new_run}


def _everywhere(value: Any, agents: Mapping[str, str]) -> Any:
    """The targets or parts of a rule, its agents replaced by those of the new run."""
    if isinstance(value, dict):
        return {key: _everywhere(inner, agents) for key, inner in value.items()}
    if isinstance(value, list):
        return [_everywhere(inner, agents) for inner in value]
    return _actor(value, agents) if isinstance(value, str) else value


def _joins(
    snapshot: Snapshot, new_run: str, agents: Mapping[str, str], rules: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What its joins had collected, as of the new run's rules and agents."""

    def part(row: Mapping[str, Any]) -> dict[str, Any]:
        event = json.loads(row["event"])
        event |= {
            "source": _actor(event["source"], agents),
            "agent_id": agents.get(event["agent_id"] or "", event["agent_id"]),
            "orchestration_id": new_run if event["orchestration_id"] is not None else None,
        }
        return {**row, "part": _actor(row["part"], agents), "event": json.dumps(event, ensure_ascii=False)}

    return [
        {**each, "rule_id": rules[each["rule_id"]]["rule_id"], "parts": [part(row) for row in each["parts"]]}
        for each in snapshot.joins
        if each["rule_id"] in rules
    ]


def _rules(snapshot: Snapshot, new_run: str, agents: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The rules of the new run, by the ids of those that they are copies of."""
    rules = {}
    for row in snapshot.rules:
        kind, _, owner = str(row["scope"]).partition(":")
        scope = f"orchestration:{new_run}" if kind == "orchestration" else f"{AGENT}{agents.get(owner, '')}"
        if kind != "orchestration" and owner not in agents:
            continue  # its agent is none of the new run's
        join_spec = row.get("join_spec")  # a checkpoint of an older version has none
        rules[row["rule_id"]] = {
            **row,
            "rule_id": RuleId(new_id("r")),
            "scope": scope,
            "source_agent": agents.get(row["source_agent"] or "", row["source_agent"]),
            "target": json.dumps(_everywhere(json.loads(row["target"]), agents)),
            "join_spec": None if join_spec is None else json.dumps(_everywhere(json.loads(join_spec), agents)),
            "created_by": _actor(row["created_by"], agents),
            "created_at_ms": snapshot.at_ms,
        }
    return rules
