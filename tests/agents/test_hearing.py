"""Who hears what without a rule, and how it is told."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_mcp.agents.hearing import ERRORS, MAX_ABOVE, MAX_HEARD, MAX_TEXT_CHARS, tell
from ksi_mcp.agents.injections import MAX_WAITING, bind_injections, release_injections
from ksi_mcp.agents.model import Agent, AgentSettings, AgentSpec
from ksi_mcp.agents.roster import Delivery, Roster
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import Limits
from ksi_mcp.db.migrate import migrate
from ksi_mcp.db.sqlite import SqliteTx
from ksi_mcp.db.statements import load_statements
from ksi_mcp.errors import StoreError
from ksi_mcp.events.model import Event
from ksi_mcp.ids import EventId
from ksi_mcp.permissions import OPERATOR, Context, fresh_context
from ksi_mcp.queues.session_queues import SessionQueues

CTX = fresh_context(OPERATOR)


class Counting(SqliteTx):
    """Counts statements."""

    asked = 0

    def _execute(self, name: str, params: Any) -> sqlite3.Cursor:
        self.asked += 1
        return super()._execute(name, params)


@dataclass
class House:
    tx: Counting
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    last: int = 0

    def __post_init__(self) -> None:
        self.ledger = Ledger(self)
        self.queues = SessionQueues()
        self.roster = Roster(self, self.queues, self.ledger)
        self.ledger.open_global(self.tx, Limits())

    def record(self, tx: Any, name: str, data: dict[str, Any], ctx: Context, **more: Any) -> Any:
        self.events.append((name, data))

    def spawn(self, name: str, parent: Agent | None = None, **more: Any) -> Agent:
        spec = AgentSpec(
            name=name, system="You help.", provider="scripted", model="m", capabilities=frozenset({"base"}),
            settings=AgentSettings(), parent_id=None if parent is None else parent.agent_id,
        )  # fmt: skip
        return self.roster.spawn(self.tx, CTX, replace(spec, **more))

    def line(self, *levels: dict[str, Any]) -> list[Agent]:
        """An agent, its child, the child of that ..., the eldest first."""
        agents: list[Agent] = []
        for place, level in enumerate(levels):
            agents.append(self.spawn(f"a{place}", agents[-1] if agents else None, **level))
        return agents

    def emit(self, agent: Agent | None, name: str = "note:made", **more: Any) -> Event:
        self.last += 1
        by_agent = agent is not None and name.partition(":")[0] not in ("completion", "agent", "budget", "routing")
        fields: dict[str, Any] = {
            "event_id": EventId(self.last),
            "name": name,
            "data": {"n": self.last},
            "source": f"agent:{agent.agent_id}" if agent is not None and by_agent else "system",
            "agent_id": None if agent is None else agent.agent_id,
            "orchestration_id": None,
            "cause_id": "turn:t_x",
            "root_id": "x_root",
            "hops": 0,
            "depth": 3,
            "at_ms": 5,
        }
        event = Event(**{**fields, **more})
        self.roster.hear(self.tx, event)
        return event

    def heard(self, agent: Agent) -> list[int]:
        return [row["event_id"] for row in self.tx.all("agents.heard", {"agent_id": agent.agent_id})]

    def told(self, agent: Agent, turn_id: str = "t_1") -> list[str]:
        """What its next turn is given."""
        if self.roster.get(self.tx, agent.agent_id).hears:
            tell(self.tx, agent.agent_id)
        return [each.content for each in bind_injections(self.tx, agent.agent_id, turn_id)]

    def turns(self, agent: Agent) -> list[Any]:
        return self.tx._connection.execute(
            "SELECT prompt, state, depth, hops, root_id, cause_id, created_by FROM turn"
            " WHERE session_id = ? ORDER BY n",
            (agent.agent_id,),
        ).fetchall()


@pytest.fixture
def house() -> Iterator[House]:
    with_rows = opened()
    yield with_rows
    with_rows.tx._connection.close()


def opened() -> House:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    migrate(connection, now_ms=0)
    return House(Counting(connection, load_statements(), 1_000))


def test_an_agent_hears_its_children_and_nobody_below_them_unless_it_says_so(house: House) -> None:
    top, middle, child = house.line({}, {}, {})
    far = house.spawn("far", child)
    one = house.emit(child)
    two = house.emit(far)
    assert [house.heard(agent) for agent in (top, middle, child, far)] == [[], [one.event_id], [two.event_id], []]


@settings(max_examples=20)
@given(
    levels=st.lists(st.integers(-1, 4), min_size=1, max_size=6),
    error_levels=st.lists(st.integers(-1, 4), min_size=6, max_size=6),
    failed=st.booleans(),
)
def test_whoever_is_above_hears_as_far_down_as_its_level_reaches(
    levels: list[int], error_levels: list[int], failed: bool
) -> None:
    house = opened()
    try:
        wants = [
            {"subscription_level": level, "error_level": errors}
            for level, errors in zip(levels, error_levels, strict=False)
        ]
        agents = house.line(*wants)
        house.emit(agents[-1], "completion:failed" if failed else "note:made")
        used = error_levels if failed else levels
        for place, agent in enumerate(agents):
            distance = len(agents) - 1 - place
            hears = distance > 0 and (used[place] == -1 or used[place] >= distance)
            assert len(house.heard(agent)) == hears, (place, distance)
    finally:
        house.tx._connection.close()


@pytest.mark.parametrize("name", ["completion:result", "agent:spawned", "completion:cancelled", "budget:threshold"])
def test_system_events_that_tell_of_no_failure_are_not_heard_and_cost_nothing(house: House, name: str) -> None:
    parent, child = house.line({"subscription_level": -1}, {})
    house.tx.asked = 0
    house.emit(child, name)
    assert house.tx.asked == 0
    assert house.heard(parent) == []


@pytest.mark.parametrize("name", sorted(ERRORS - {"orchestration:failed"}))
def test_failures_below_are_heard_all_the_way_up_by_default(house: House, name: str) -> None:
    *above, child = house.line({"subscription_level": 0}, {"subscription_level": 0}, {})
    house.emit(child, name)
    assert [len(house.heard(agent)) for agent in (*above, child)] == [1, 1, 0]


def test_an_event_without_an_agent_costs_nothing_and_one_of_an_agent_without_a_parent_one_look(house: House) -> None:
    alone = house.spawn("alone")
    house.tx.asked = 0
    house.emit(None, source="operator")
    assert house.tx.asked == 0
    house.emit(alone)
    assert house.tx.asked == 1


def test_the_failure_of_a_run_is_heard_by_whoever_started_it_unless_it_said_so_itself(house: House) -> None:
    top, starter = house.line({}, {})
    values = {
        "orchestration_id": "o_1", "pattern": "p", "pattern_hash": "h", "orchestrator": "client", "vars": "{}",
        "max_depth": 9, "created_by": f"agent:{starter.agent_id}", "now_ms": 0,
    }  # fmt: skip
    house.tx.run("orchestrations.insert", values)
    house.ledger.open(house.tx, "o_1", parent_id="global", limits=Limits())
    leader = house.spawn("leader", orchestration_id="o_1")
    failed = {"name": "orchestration:failed", "orchestration_id": "o_1"}
    house.emit(leader, **failed, source=f"agent:{leader.agent_id}")
    assert (len(house.heard(top)), len(house.heard(starter))) == (1, 1)
    assert "orchestration:failed of o_1:" in house.told(starter)[0]
    house.emit(starter, **failed, source=f"agent:{starter.agent_id}")
    assert (len(house.heard(top)), len(house.heard(starter))) == (2, 0)


def test_who_has_ended_hears_nothing_and_those_above_still_do(house: House) -> None:
    top, middle, child = house.line({"subscription_level": 2}, {}, {})
    house.emit(child)
    house.roster.end(house.tx, CTX, middle, life="terminated", reason="done")
    assert house.heard(middle) == []  # what it had heard is gone
    house.emit(child)
    assert (len(house.heard(top)), house.heard(middle)) == (2, [])


def test_a_line_of_any_length_is_heard_no_further_up_than_the_bound(house: House) -> None:
    agents = house.line(*[{"subscription_level": -1}] * (MAX_ABOVE + 5))
    house.emit(agents[-1])
    assert [len(house.heard(agent)) for agent in agents] == [0] * 4 + [1] * MAX_ABOVE + [0]


# ------------------------------------------------------------------------------------- the notice


def test_all_that_was_heard_is_one_notice_before_the_next_turn_and_told_once(house: House) -> None:
    parent, child = house.line({}, {})
    house.emit(child, data={"found": "a\nforged: line"})
    house.emit(child, "completion:failed", data={"turn": "t_9", "agent": "a", "text": "long", "error": "overloaded"})
    (notice,) = house.told(parent)
    shown = f"a1 ({child.agent_id})"
    assert notice.splitlines() == [
        "Since your last turn, among the agents below you (a notice, not a request):",
        f'- note:made of {shown}: {{"found": "a\\nforged: line"}}',
        f'- completion:failed of {shown}: {{"turn": "t_9", "error": "overloaded"}}',
    ]
    assert house.heard(parent) == []
    assert house.told(parent, "t_2") == []


def test_only_the_newest_are_kept_and_how_many_were_left_out_is_said(house: House) -> None:
    parent, child = house.line({}, {})
    for _ in range(MAX_HEARD + 7):
        house.emit(child)
    assert house.heard(parent) == list(range(8, MAX_HEARD + 8))
    (notice,) = house.told(parent)
    assert notice.count("\n- ") == MAX_HEARD
    assert notice.endswith("(7 older ones are left out; event_query shows them.)")
    house.emit(child)
    assert "left out" not in house.told(parent, "t_2")[0]


def test_a_long_event_is_cut_and_says_where_the_rest_is(house: House) -> None:
    parent, child = house.line({}, {})
    house.emit(child, data={"text": "x" * 60_000})
    (notice,) = house.told(parent)
    assert notice.endswith("... [cut; event 1 has all of it]")
    assert len(notice) < MAX_TEXT_CHARS + 250


def test_a_notice_of_a_turn_without_an_answer_waits_and_notices_do_not_pile_up_without_end(house: House) -> None:
    parent, child = house.line({}, {})
    house.emit(child)
    first = house.told(parent)
    release_injections(house.tx, "t_1")
    assert house.told(parent, "t_2") == first
    for place in range(MAX_WAITING + 5):
        house.emit(child)
        house.told(parent, f"t_{place + 3}")
        for turn in range(2, place + 4):
            release_injections(house.tx, f"t_{turn}")
    assert len(house.told(parent, "t_last")) == MAX_WAITING
    assert len(house.heard(parent)) == 6  # kept, and told when there is room
    assert house.told(parent, "t_next")[0].count("\n- ") == 6


# -------------------------------------------------------------------------------------------- wake


def test_what_a_waking_agent_hears_starts_one_turn_as_deep_as_what_was_heard(house: House) -> None:
    parent, child = house.line({"wake": True}, {})
    event = house.emit(child)
    house.emit(child)
    (turn,) = house.turns(parent)
    assert tuple(turn)[1:] == ("ready", event.depth + 1, 1, "x_root", f"event:{event.event_id}", "system")
    assert "agents below you" in turn["prompt"]


def test_what_is_heard_while_a_turn_runs_starts_one_more_and_what_waits_already_is_enough(house: House) -> None:
    parent, child = house.line({"wake": True}, {})
    house.roster.send(house.tx, CTX, parent, "work", Delivery())
    house.emit(child)
    assert len(house.turns(parent)) == 1  # its turn will be told
    house.tx._connection.execute("UPDATE turn SET state = 'running', attempt = 1")
    house.emit(child)
    house.emit(child)
    assert [turn["state"] for turn in house.turns(parent)] == ["running", "queued"]


def test_a_chain_that_is_as_long_as_it_may_get_wakes_nobody_and_says_so(house: House) -> None:
    parent, child = house.line({"wake": True}, {})
    event = house.emit(child, depth=256)
    assert house.turns(parent) == []
    assert house.heard(parent) == [event.event_id]
    name, facts = house.events[-1]
    assert name == "agent:not_woken"
    assert (facts["agent"], facts["event_id"]) == (parent.agent_id, event.event_id)
    assert "256" in facts["reason"]


def test_an_agent_that_drains_hears_and_is_not_woken(house: House) -> None:
    parent, child = house.line({"wake": True}, {})
    house.roster.send(house.tx, CTX, parent, "work", Delivery())
    house.tx._connection.execute("UPDATE turn SET state = 'running', attempt = 1")
    house.tx.run("agents.drain", {"agent_id": parent.agent_id})
    house.emit(child)
    assert (len(house.turns(parent)), len(house.heard(parent))) == (1, 1)
    assert "agent:not_woken" not in [name for name, _ in house.events]


def test_a_store_that_fails_while_waking_undoes_the_event_instead_of_losing_it(house: House) -> None:
    _, child = house.line({"wake": True}, {})

    def fail(*_: Any) -> str:
        raise StoreError("the disk is full")

    house.roster.deliver_turn = fail  # type: ignore[method-assign]
    with pytest.raises(StoreError):
        house.emit(child)


def test_nobody_hears_itself(house: House) -> None:
    parent, _ = house.line({"subscription_level": -1, "wake": True}, {})
    house.emit(parent)
    assert (house.heard(parent), house.turns(parent)) == ([], [])
