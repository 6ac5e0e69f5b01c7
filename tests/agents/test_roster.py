from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ksi_mcp.agents import reach
from ksi_mcp.agents.model import Agent, AgentSettings, AgentSpec
from ksi_mcp.agents.roster import AgentFilter, Delivery, Roster
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import Limits
from ksi_mcp.db.migrate import migrate
from ksi_mcp.db.sqlite import SqliteTx
from ksi_mcp.db.statements import load_statements
from ksi_mcp.errors import Conflict, Invalid, KsiError, NotFound, Refused
from ksi_mcp.permissions import OPERATOR, Context, agent_actor, fresh_context
from ksi_mcp.queues.session_queues import SessionQueues

CTX = fresh_context(OPERATOR)
EVERY = frozenset({"base", "messaging", "spawn_agents"})


@dataclass
class House:
    tx: SqliteTx
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self)
        self.queues = SessionQueues()
        self.roster = Roster(self, self.queues, self.ledger)
        self.ledger.open_global(self.tx, Limits())

    def record(self, tx: Any, name: str, data: dict[str, Any], ctx: Context, **more: Any) -> Any:
        self.events.append((name, data))

    def run(self, orchestration_id: str, *, max_depth: int = 256) -> None:
        values = {
            "orchestration_id": orchestration_id, "pattern": "p", "pattern_hash": "h", "orchestrator": "client",
            "vars": "{}", "max_depth": max_depth, "created_by": "operator", "now_ms": 0,
        }  # fmt: skip
        self.tx.run("orchestrations.insert", values)
        self.ledger.open(self.tx, orchestration_id, parent_id="global", limits=Limits())

    def spawn(self, name: str, ctx: Context = CTX, **more: Any) -> Agent:
        spec = AgentSpec(
            name=name, system="You help.", provider="scripted", model="m", capabilities=EVERY, settings=AgentSettings()
        )
        return self.roster.spawn(self.tx, ctx, replace(spec, **more))

    def refused(self, kind: type[KsiError], name: str, ctx: Context = CTX, **more: Any) -> str:
        before = self.dump()
        with pytest.raises(kind) as refusal:
            self.spawn(name, ctx, **more)
        assert self.dump() == before  # checks come before changes
        return refusal.value.text()

    def dump(self) -> list[str]:
        return list(self.tx._connection.iterdump())


@pytest.fixture
def house() -> Iterator[House]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    migrate(connection, now_ms=0)
    yield House(SqliteTx(connection, load_statements(), 1_000))
    connection.close()


def acting(agent: Agent) -> Context:
    return fresh_context(agent_actor(agent.agent_id), orchestration_id=agent.orchestration_id)  # type: ignore[arg-type]


# -- making -----------------------------------------------------------------------------------------


def test_an_agent_comes_with_its_session_and_its_account(house: House) -> None:
    agent = house.spawn("a", limits=Limits(tokens=5))
    assert (agent.status, agent.life, agent.pending, agent.created_by) == ("idle", "active", 0, "operator")
    assert house.ledger.account(house.tx, agent.agent_id).limits == Limits(tokens=5)
    child = house.spawn("b", parent_id=agent.agent_id)
    path = [account.account_id for account in house.ledger.path(house.tx, child.agent_id)]
    assert path == ["global", agent.agent_id, child.agent_id]
    assert [name for name, _ in house.events] == ["agent:spawned", "agent:spawned"]


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a/b", "../x", ".hidden", "-flag", "a:b", "ä", "a\n", "a\x00", "x" * 65, "agent\u200b"]
)
def test_a_name_that_cannot_stand_in_a_path_or_a_prompt_is_refused(house: House, name: str) -> None:
    assert "cannot be used" in house.refused(Invalid, name)


@pytest.mark.parametrize("name", ["a", "7", "A.b-c_d", "x" * 64])
def test_a_plain_name_is_taken_as_it_is(house: House, name: str) -> None:
    assert house.spawn(name).name == name


def test_a_live_name_is_taken_where_it_lives_and_free_again_after_the_end(house: House) -> None:
    house.run("o_1")
    first = house.spawn("a")
    house.spawn("a", orchestration_id="o_1")  # another place
    assert f"is taken by {first.agent_id}" in house.refused(Conflict, "a")
    house.roster.end(house.tx, CTX, first, life="terminated", reason="r")
    assert house.spawn("a").agent_id != first.agent_id


def test_a_free_name_counts_on(house: House) -> None:
    for taken in ("a_b", "a_b-2", "axb-3"):
        house.spawn(taken)
    assert house.roster.free_name(house.tx, "a_b", None) == "a_b-3"
    assert house.roster.free_name(house.tx, "new", None) == "new"


def test_an_agent_needs_known_capabilities_and_a_run_that_runs(house: House) -> None:
    assert "unknown capabilities: operator" in house.refused(Invalid, "a", capabilities=frozenset({"base", "operator"}))
    assert "unknown orchestration 'o_9'" in house.refused(NotFound, "a", orchestration_id="o_9")
    house.run("o_1")
    house.tx._connection.execute("UPDATE orchestration SET state = 'stopped'")
    assert "o_1 is stopped" in house.refused(Conflict, "a", orchestration_id="o_1")


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"max_tool_rounds": 101}, {"context_messages": 0}])
def test_settings_out_of_bounds_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(Invalid, match=next(iter(wrong))):
        AgentSettings(**wrong)


# -- whom an agent can reach ------------------------------------------------------------------------


def test_a_child_holds_no_more_than_its_spawner_nor_than_its_parent(house: House) -> None:
    boss = house.spawn("boss", capabilities=frozenset({"base", "spawn_agents"}))
    text = house.refused(Refused, "kid", acting(boss), capabilities=frozenset({"base", "messaging"}))
    assert text == f"agent:{boss.agent_id} cannot grant what it does not hold: messaging; it holds base, spawn_agents"
    assert "parent 'boss' cannot grant" in house.refused(Refused, "kid", parent_id=boss.agent_id, capabilities=EVERY)
    kid = house.spawn("kid", acting(boss), capabilities=frozenset({"base"}))
    assert (kid.parent_id, kid.created_by) == (boss.agent_id, f"agent:{boss.agent_id}")


def test_an_agent_spawns_below_itself_and_into_its_own_run_only(house: House) -> None:
    house.run("o_1")
    house.run("o_2")
    boss, peer = house.spawn("boss", orchestration_id="o_1"), house.spawn("peer", orchestration_id="o_1")
    stranger = house.spawn("stranger")
    assert "may not spawn a child of 'peer'" in house.refused(Refused, "kid", acting(boss), parent_id=peer.agent_id)
    assert "unknown agent" in house.refused(NotFound, "kid", acting(boss), parent_id=stranger.agent_id)
    assert "own orchestration" in house.refused(Refused, "kid", acting(boss), orchestration_id="o_2")
    kid = house.spawn("kid", acting(boss))
    assert kid.orchestration_id == "o_1"
    assert house.spawn("grandkid", acting(boss), parent_id=kid.agent_id).parent_id == kid.agent_id
    assert "lives in no orchestration" in house.refused(
        Invalid, "odd", parent_id=stranger.agent_id, orchestration_id="o_1"
    )


def test_an_ended_agent_does_nothing_and_is_nobodys_parent(house: House) -> None:
    boss = house.spawn("boss")
    house.roster.end(house.tx, CTX, boss, life="terminated", reason="r")
    assert "is not active any more" in house.refused(Refused, "kid", acting(boss))
    assert "has ended" in house.refused(Conflict, "kid", parent_id=boss.agent_id)
    with pytest.raises(Refused, match="not active"):
        reach.require(house.tx, acting(boss), "base", action="look")


def test_an_agent_sees_itself_what_descends_from_it_and_its_run(house: House) -> None:
    house.run("o_1")
    lone = house.spawn("lone")
    kid = house.spawn("kid", parent_id=lone.agent_id)
    grandkid = house.spawn("grandkid", parent_id=kid.agent_id)
    other = house.spawn("other")
    one, two = house.spawn("one", orchestration_id="o_1"), house.spawn("two", orchestration_id="o_1")
    tx = house.tx
    assert reach.visible(tx, CTX) is None
    assert reach.visible(tx, acting(lone)) == {lone.agent_id, kid.agent_id, grandkid.agent_id}
    assert reach.visible(tx, acting(kid)) == {kid.agent_id, grandkid.agent_id}  # not upwards
    assert reach.visible(tx, acting(one)) == {one.agent_id, two.agent_id}
    assert reach.visible_scopes(tx, acting(one)) == {one.agent_id, two.agent_id, "o_1"}
    for ref in ("other", other.agent_id, "one", one.agent_id, lone.agent_id):
        with pytest.raises(NotFound):
            reach.find(tx, acting(kid), ref)
    page, _ = house.roster.page(tx, acting(kid), AgentFilter(), limit=10, cursor=None)
    assert [agent.name for agent in page] == ["kid", "grandkid"]


def test_an_agent_changes_only_what_is_below_it(house: House) -> None:
    house.run("o_1")
    one, two = house.spawn("one", orchestration_id="o_1"), house.spawn("two", orchestration_id="o_1")
    with pytest.raises(Refused, match=f"agent:{one.agent_id} may not end 'two'"):
        reach.find_below(house.tx, acting(one), "two", action="end")
    assert reach.find_below(house.tx, acting(one), "one", action="end").agent_id == one.agent_id
    assert reach.find_below(house.tx, CTX, "two", action="end").agent_id == two.agent_id


@pytest.mark.parametrize(("count", "shown"), [(0, "0 agents"), (1, "1 agent"), (3, "3 agents")])
def test_an_unknown_agent_is_an_error_that_says_how_many_there_are(house: House, count: int, shown: str) -> None:
    for n in range(count):
        house.spawn(f"a{n}")
    ended = house.spawn("ended")
    house.roster.end(house.tx, CTX, ended, life="terminated", reason="r")
    with pytest.raises(NotFound) as missing:
        reach.find(house.tx, CTX, "x")
    assert missing.value.text() == f"unknown agent 'x'; agent_list shows {shown}"


def test_an_agent_is_told_only_how_many_it_can_see(house: House) -> None:
    one = house.spawn("one")
    house.spawn("two")
    with pytest.raises(NotFound) as missing:
        reach.find(house.tx, acting(one), "two")
    assert missing.value.text() == "unknown agent 'two'; agent_list shows 1 agent"


def test_a_name_means_the_living_and_a_doubtful_one_is_asked_back(house: House) -> None:
    house.run("o_1")
    house.run("o_2")
    dead = house.spawn("a", orchestration_id="o_1")
    house.roster.end(house.tx, CTX, dead, life="failed", reason="r")
    assert reach.find(house.tx, CTX, "a").agent_id == dead.agent_id  # history stays readable
    living = house.spawn("a", orchestration_id="o_1")
    assert reach.find(house.tx, CTX, "a").agent_id == living.agent_id
    second = house.spawn("a", orchestration_id="o_2")
    with pytest.raises(Invalid, match="2 agents are named 'a'") as doubt:
        reach.find(house.tx, CTX, "a")
    assert living.agent_id in doubt.value.text()
    assert second.agent_id in doubt.value.text()
    assert reach.find(house.tx, acting(second), "a").agent_id == second.agent_id


# -- listing ----------------------------------------------------------------------------------------


def test_pages_follow_the_order_of_birth_and_filters_hold_together(house: House) -> None:
    for n in range(5):
        house.spawn(f"a{n}", composition=f"c_{n % 2}@hash", capabilities=EVERY if n % 2 else frozenset({"base"}))
    busy = reach.find(house.tx, CTX, "a3")
    house.roster.send(house.tx, CTX, busy, "go", Delivery())
    house.roster.end(house.tx, CTX, reach.find(house.tx, CTX, "a4"), life="terminated", reason="r")

    def names(limit: int = 10, **wanted: Any) -> list[str]:
        found: list[str] = []
        cursor = None
        while True:
            page, cursor = house.roster.page(house.tx, CTX, AgentFilter(**wanted), limit=limit, cursor=cursor)
            found += [agent.name for agent in page]
            if cursor is None:
                return found

    assert names(limit=2) == names() == ["a0", "a1", "a2", "a3", "a4"]
    assert names(status="active", limit=1) == ["a0", "a1", "a2", "a3"]
    assert names(status="idle") == ["a0", "a1", "a2"]
    assert names(status="busy") == ["a3"]
    assert names(status="terminated") == ["a4"]
    assert names(composition="c_1") == ["a1", "a3"]
    assert names(composition="c%") == []  # a name, not a pattern
    assert names(capabilities=("messaging", "base")) == ["a1", "a3"]
    for cursor in ("x", "²", "9" * 30):
        with pytest.raises(Invalid, match="is not one of ours"):
            house.roster.page(house.tx, CTX, AgentFilter(), limit=1, cursor=cursor)


# -- speaking and ending ----------------------------------------------------------------------------


def test_a_message_is_one_hop_and_one_turn_further_in_its_chain(house: House) -> None:
    agent = house.spawn("a")
    ctx = replace(CTX, hops=2, depth=5, cause_id="event:9")
    turn = house.roster.send(house.tx, ctx, agent, "go", Delivery(reply_event="done:it", timeout_s=3))
    assert (turn.hops, turn.depth, turn.root_id, turn.cause_id) == (3, 6, CTX.root_id, "event:9")
    assert (turn.reply_event, turn.timeout_s, turn.created_by) == ("done:it", 3, "operator")


@pytest.mark.parametrize(
    ("message", "how", "shown"),
    [
        ("  \n", Delivery(), "the message is empty"),
        ("x" * 200_001, Delivery(), "200,001 characters"),
        ("go", Delivery(timeout_s=0), "timeout_s is 0"),
        ("go", Delivery(timeout_s=3601), "timeout_s is 3601"),
        ("go", Delivery(timeout_s=float("nan")), "timeout_s is nan"),
    ],
)
def test_a_message_out_of_bounds_is_refused(house: House, message: str, how: Delivery, shown: str) -> None:
    agent = house.spawn("a")
    with pytest.raises(Invalid, match=shown):
        house.roster.send(house.tx, CTX, agent, message, how)
    assert house.roster.get(house.tx, agent.agent_id).pending == 0


def test_a_chain_of_causes_ends_at_its_limits(house: House) -> None:
    house.run("o_1", max_depth=3)
    deep, lone = house.spawn("deep", orchestration_id="o_1"), house.spawn("lone")
    for agent, hops, depth, allowed in (
        (deep, 0, 2, True), (deep, 0, 3, False), (lone, 0, 255, True), (lone, 0, 256, False),
        (lone, 15, 0, True), (lone, 16, 0, False),
    ):  # fmt: skip
        ctx = replace(CTX, hops=hops, depth=depth)
        if allowed:
            house.roster.send(house.tx, ctx, agent, "go", Delivery())
        else:
            with pytest.raises(Refused, match="this chain of causes"):
                house.roster.send(house.tx, ctx, agent, "go", Delivery())


def test_ending_an_agent_cancels_what_waits_for_it_once(house: House) -> None:
    agent = house.spawn("a")
    for _ in range(3):
        house.roster.send(house.tx, CTX, agent, "go", Delivery())
    house.events.clear()
    cancelled = house.roster.end(house.tx, CTX, agent, life="terminated", reason="enough")
    assert [turn.state for turn in cancelled] == ["cancelled"] * 3
    assert [name for name, _ in house.events] == ["completion:cancelled"] * 3 + ["agent:terminated"]
    assert house.roster.end(house.tx, CTX, agent, life="terminated", reason="again") == []
    now = house.roster.get(house.tx, agent.agent_id)
    assert (now.status, now.pending) == ("terminated", 0)
    with pytest.raises(Conflict, match="agent 'a' is terminated"):
        house.roster.send(house.tx, CTX, now, "go", Delivery())
