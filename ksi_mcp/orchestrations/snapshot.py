"""A run as it stands, as JSON.

What may change is in it; what never changes (prompts, answers, finished turns) is found by the numbers that were
the newest when it was taken.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final

from ksi_mcp.db import Row, Tx
from ksi_mcp.errors import Exhausted, StoreError
from ksi_mcp.orchestrations.model import Orchestration

FORMAT: Final = 1
MAX_SNAPSHOT_CHARS: Final = 64_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What `take` saw. The rows are those of `queries.sql`, by column name.

    `last_*` are the newest numbers of their tables at that moment. `turns` are those that had not ended, `tools` the
    places (round, index) of the tool results that they had.
    """

    at_ms: int
    last_turn: int
    last_call: int
    last_event: int
    last_injection: int
    finished: int
    draining: str | None
    account: dict[str, Any]
    agents: list[dict[str, Any]]
    turns: list[dict[str, Any]]
    tools: dict[str, list[list[int]]]
    injections: list[list[Any]]
    rules: list[dict[str, Any]]
    delayed: list[dict[str, Any]]
    outbox: list[int]
    heard: list[dict[str, Any]] = field(default_factory=list)
    joins: list[dict[str, Any]] = field(default_factory=list)
    """Each with its `parts`."""

    @property
    def turn_ids(self) -> list[str]:
        """The turns that had not ended."""
        return [turn["turn_id"] for turn in self.turns]

    @property
    def living(self) -> list[dict[str, Any]]:
        """The agents that lived."""
        return [agent for agent in self.agents if agent["status"] == "active"]


def take(tx: Tx, run: Orchestration) -> Snapshot:
    """Look at a run, in a few statements however large it is."""
    own = {"orchestration_id": run.orchestration_id, "now_ms": tx.now_ms}
    marks = tx.one("orchestrations.take_marks", own)
    account = tx.one("orchestrations.take_account", {"account_id": run.orchestration_id})
    if marks is None or account is None:
        raise StoreError(f"orchestration {run.orchestration_id} has no account", hint="the database file is damaged")
    turns = _rows(tx.all("orchestrations.take_turns", own))
    turn_ids = json.dumps([turn["turn_id"] for turn in turns])
    tools: dict[str, list[list[int]]] = defaultdict(list)
    for row in tx.all("orchestrations.take_tools", {"turn_ids": turn_ids}):
        tools[row["turn_id"]].append([row["round"], row["idx"]])
    injections = tx.all("orchestrations.take_injections", {**own, "turn_ids": turn_ids})
    draining = tx.one("orchestrations.one", own)
    return Snapshot(
        at_ms=tx.now_ms,
        last_turn=marks["last_turn"],
        last_call=marks["last_call"],
        last_event=marks["last_event"],
        last_injection=marks["last_injection"],
        finished=marks["finished"],
        draining=None if draining is None else draining["draining"],
        account=_row(account),
        agents=_rows(tx.all("orchestrations.take_agents", own)),
        turns=turns,
        tools=dict(tools),
        injections=[[row["injection_id"], row["turn_id"]] for row in injections],
        rules=_rows(tx.all("orchestrations.take_rules", own)),
        delayed=_rows(tx.all("orchestrations.take_delayed", own)),
        outbox=[row["event_id"] for row in tx.all("orchestrations.take_outbox", own)],
        heard=_rows(tx.all("orchestrations.take_heard", own)),
        joins=_joins(tx, own),
    )


def encode(snapshot: Snapshot) -> str:
    """As stored.

    Raises:
        Exhausted: it is larger than a checkpoint can be.
    """
    fields = {name: getattr(snapshot, name) for name in Snapshot.__slots__}
    text = json.dumps({"format": FORMAT, **fields}, ensure_ascii=False, separators=(",", ":"))
    if len(text) > MAX_SNAPSHOT_CHARS:
        raise Exhausted(
            f"a checkpoint of this run would have {len(text):,} characters, the limit is {MAX_SNAPSHOT_CHARS:,}",
            hint="let some of its turns end first",
        )
    return text


def decode(stored: str) -> Snapshot:
    """From the store.

    Raises:
        StoreError: a newer version of ksi_mcp wrote it.
    """
    fields = json.loads(stored)
    if fields.pop("format", None) != FORMAT:
        raise StoreError("this checkpoint is of another version", hint="use the version of ksi_mcp that made it")
    fields["agents"] = [{**_levels(agent), **agent} for agent in fields["agents"]]
    return Snapshot(**fields)


def _levels(agent: dict[str, Any]) -> dict[str, Any]:
    """What an agent has of which a checkpoint of an older version does not speak."""
    routing_level = "children" if "routing_control" in json.loads(agent["capabilities"]) else "none"
    return {"routing_level": routing_level, "subscription_level": 1, "error_level": -1, "wake": 0}


def lane_state(turn: dict[str, Any], *, taken_at_ms: int, now_ms: int) -> dict[str, Any]:
    """How a turn of a snapshot stands in its lane now: who was at work or waited for room or a circuit asks again."""
    state, parked_on = turn["state"], turn["parked_on"]
    if state in ("running", "blocked") or (state == "parked" and parked_on != "answer"):
        state, parked_on = "ready", None
    run_at_ms = now_ms
    if state == "retrying":
        run_at_ms = now_ms + max(turn["run_at_ms"] - taken_at_ms, 0)
    elif state == "parked":
        run_at_ms = turn["run_at_ms"]
    question = turn["question"] if parked_on == "answer" else None
    return {"state": state, "parked_on": parked_on, "question": question, "run_at_ms": run_at_ms}


def _joins(tx: Tx, own: dict[str, Any]) -> list[dict[str, Any]]:
    parts: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in tx.all("orchestrations.take_join_parts", own):
        part = {name: row[name] for name in ("part", "event_id", "event", "at_ms")}
        parts[row["rule_id"], row["key"]].append(part)
    found = _rows(tx.all("orchestrations.take_joins", own))
    return [{**each, "parts": parts[each["rule_id"], each["key"]]} for each in found]


def _row(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in row.keys()}  # noqa: SIM118  a row iterates over its values


def _rows(rows: Any) -> list[dict[str, Any]]:
    return [_row(row) for row in rows]
