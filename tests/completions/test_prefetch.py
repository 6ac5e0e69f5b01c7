"""Prefetches: what holds of them, and the loop that makes their calls, on a real store with a scripted model."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.app import App, AppOptions
from ksi_mcp.clock import SystemClock
from ksi_mcp.completions import prefetch
from ksi_mcp.completions.breaker import Breakers
from ksi_mcp.completions.limiter import Limits
from ksi_mcp.completions.model import Loaded, Prepared
from ksi_mcp.completions.prefetch import standing
from ksi_mcp.completions.prefetcher import Prefetcher
from ksi_mcp.completions.preparing import Preparing
from ksi_mcp.completions.slots import Slots
from ksi_mcp.completions.units import TurnUnits
from ksi_mcp.config import Config, Home
from ksi_mcp.errors import Exhausted, NotFound
from ksi_mcp.ids import WorkerId
from ksi_mcp.permissions import OPERATOR, agent_actor, fresh_context
from ksi_mcp.tools.agent_tools import AgentTools

USAGE = {"input_tokens": 100, "output_tokens": 10}
COST = 120
PRICES = {"m": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}}
SHOWN = {"default": {"reply": "{{system}} | {{prompt}}", "usage": USAGE}}
SLOW = {"default": {"reply": "{{prompt}}", "latency_s": 60, "usage": USAGE}}


class Gate(SystemClock):
    """A scripted latency lasts until the gate opens; the time of day can be put forward."""

    def __init__(self) -> None:
        self.ahead_ms = 0
        self.opened = asyncio.Event()

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms

    async def sleep(self, seconds: float) -> None:
        await self.opened.wait()


@dataclass
class Desk:
    """An application without a worker, and a prefetcher that looks when it is told to."""

    app: App
    gate: Gate
    preparing: Preparing
    units: TurnUnits
    slots: Slots
    prefetcher: Prefetcher
    room: list[int] = field(default_factory=lambda: [8])

    async def call(self, tool: str, **args: Any) -> dict[str, Any]:
        return (await self.app.toolbox.call(fresh_context(OPERATOR), tool, args)).data

    async def spawn(self, name: str = "a", **more: Any) -> str:
        made = await self.call("agent_spawn", name=name, prompt="You help.", model="m", capabilities=[], **more)
        return str(made["agent"])

    async def states(self, agent: str = "a") -> list[str]:
        """Oldest first."""
        shown = (await self.call("completion_prefetch", agent=agent))["prefetches"]
        return [one["status"] for one in reversed(shown)]

    async def look(self) -> None:
        await self.prefetcher.look()
        for _ in range(20):  # each call takes its first steps
            await asyncio.sleep(0)

    async def rest(self) -> None:
        """Look, and wait for what was begun."""
        await self.look()
        await self.until(lambda: not self.prefetcher.busy)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not holds():  # noqa: ASYNC110  the task of a call is nobody's to await
                await asyncio.sleep(0.001)

    async def claim(self, limit: int = 1) -> list[tuple[Loaded, Prepared]]:
        """What a worker would take now, as it would render it."""
        units, preparing = self.units, self.preparing
        claims = await self.app.services.journal.commit(
            lambda tx: units.claim(tx, WorkerId("w_test"), free=lambda _provider: limit, limit=limit)
        )
        return [(one.item, await preparing.prepare_all(one.item)) for one in claims.taken]

    async def hit(self, agent_id: str, prepared: Prepared) -> Any:
        return await self.app.services.journal.read(
            lambda tx: prefetch.prefetched(tx, prepared.wanted.request_hash, agent_id)
        )

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.app.home.database) as connection:
            found = connection.execute(sql, values).fetchall()
        connection.close()
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(data) for (data,) in self.rows("SELECT data FROM event WHERE name = ?", name)]

    def paid(self) -> int:
        """What prefetches cost, in micro-dollars; the books say so in four places, and nothing is set aside."""
        assert self.rows("SELECT * FROM hold WHERE state IN ('reserved', 'sent')") == []
        assert self.rows("SELECT * FROM account WHERE reserved_usd_micros <> 0 OR reserved_tokens <> 0") == []
        ((held,),) = self.rows("SELECT TOTAL(cost_usd_micros) FROM hold WHERE turn_id LIKE 'prefetch:%'")
        ((noted,),) = self.rows("SELECT TOTAL(cost_usd_micros) FROM prefetch")
        ((own,),) = self.rows("SELECT TOTAL(spent_usd_micros) FROM account WHERE account_id LIKE 'p!_%' ESCAPE '!'")
        ((all_of_it,),) = self.rows("SELECT spent_usd_micros FROM account WHERE account_id = 'global'")
        assert held == noted == own == all_of_it
        return int(held)


OpenDesk = Callable[..., Any]


@pytest.fixture
def open_desk(tmp_path: Path) -> OpenDesk:
    @asynccontextmanager
    async def opened(script: dict[str, Any], *, ceiling: int | None = None, **config: Any) -> AsyncIterator[Desk]:
        (tmp_path / "script.yaml").write_text(json.dumps(script))
        chosen = Config(**{"provider": "scripted", "scripted": {"script": "script.yaml"}, "prices": PRICES, **config})
        gate = Gate()
        async with App(Home(root=tmp_path), AppOptions(worker="none"), config=chosen, clock=gate) as app:
            svc = app.services
            preparing = Preparing(chosen, AgentTools(app.toolbox), svc.prices)
            room = [8]
            units = TurnUnits(svc.journal, svc.queues, svc.roster, svc.ledger, Breakers(svc.journal))
            slots = Slots(Limits(gate, ceiling=lambda _provider: ceiling), gate)
            prefetcher = Prefetcher(
                svc.journal,
                svc.queues,
                svc.roster,
                svc.ledger,
                preparing=preparing,
                get_provider=svc.registry.get,
                slots=slots,
                free_places=lambda: room[0],
                claiming=asyncio.Lock(),
            )
            yield Desk(app, gate, preparing, units, slots, prefetcher, room)
            prefetcher.yield_room()
            await prefetcher.drain()

    return opened


# ------------------------------------------------------------------------------------ how it stands


def row_of(**changes: Any) -> Any:
    row = {
        "state": "waiting", "life": "active", "draining": 0, "expires_at_ms": 100, "changes": 3, "pending": 0,
        "follows": 3, "suspended": 0, "asked": 0,
    }  # fmt: skip
    return {**row, **changes}


@pytest.mark.parametrize(
    ("changes", "gone", "ready"),
    [
        ({}, None, True),
        ({"state": "answered"}, None, False),
        ({"suspended": 1}, None, False),
        ({"changes": 2, "pending": 1}, None, False),
        ({"expires_at_ms": 50}, "its time was over", False),
        ({"life": "terminated"}, "its agent has ended", False),
        ({"draining": 1}, "its agent has ended", False),
        ({"changes": 4}, "its agent's conversation went on", False),
        ({"changes": 2}, "turns before it were taken away", False),
        ({"pending": 1}, "another prompt came first", False),
        ({"pending": 1, "asked": 1}, "it was asked before it could be answered", False),
        ({"pending": 1, "asked": 1, "state": "sent"}, None, False),
        ({"pending": 1, "asked": 1, "state": "answered"}, None, False),
        ({"pending": 1, "state": "answered"}, "another prompt came first", False),
    ],
)
def test_how_a_prefetch_stands_follows_from_its_conversation(
    changes: dict[str, Any], gone: str | None, ready: bool
) -> None:
    found = standing(row_of(**changes), 50)
    assert (found.gone, found.ready) == (gone, ready)


@given(before=st.integers(0, 5), steps=st.lists(st.booleans(), max_size=12))
def test_turns_that_were_there_may_end_and_the_first_new_one_ends_it(before: int, steps: list[bool]) -> None:
    changes, pending, follows = 7, before, 7 + before
    for put_in in steps:
        if put_in:
            pending += 1
        elif pending:
            pending, changes = pending - 1, changes + 1
        found = standing(row_of(changes=changes, pending=pending, follows=follows), 0)
        new = changes + pending - follows
        assert (found.gone is None) == (new == 0)
        assert found.ready == (new == 0 and pending == 0)


# -------------------------------------------------------------------------------------- the calls


async def test_the_request_is_the_one_that_the_real_turn_makes(open_desk) -> None:
    async with open_desk(SHOWN) as desk:
        agent = await desk.spawn(orchestration=None)
        await desk.call("agent_send", agent="a", message="one")
        ((item, _),) = await desk.claim()
        journal, queues = desk.app.services.journal, desk.app.services.queues
        await journal.commit(lambda tx: queues.finish(tx, item.turn, state="done", result="first"))
        for position in ("before", "after", "system"):
            await desk.call("completion_inject", agent="a", content=f"put {position}", position=position)
        await desk.call("completion_prefetch", agent="a", prompts=["two", "three"])
        await desk.rest()
        assert await desk.states() == ["answered", "answered"]
        (answer,) = desk.rows("SELECT json_extract(answer, '$.text') FROM prefetch WHERE prompt = 'two'")[0]
        assert answer == "You help.\n\nput system | put before\ntwo\nput after"
        await desk.call("agent_send", agent="a", message="two")
        ((item, prepared),) = await desk.claim()
        found = await desk.hit(agent, prepared)
        assert found["prompt"] == "two"
        assert await desk.hit("a_somebody", prepared) is None
        turn = item.turn

        def take(tx: Any) -> list[str | None]:
            values = {"turn_id": turn.turn_id, "number": 1, "attempt": 1, "account_id": agent}
            return [prefetch.use(tx, found["prefetch_id"], **values) for _ in range(2)]

        stored, again = await journal.commit(take)
        assert json.loads(stored or "")["text"] == answer
        assert again is None
        assert await desk.hit(agent, prepared) is None
        assert desk.rows(
            "SELECT round, state, cost_usd_micros, reused_from, answer = ? FROM provider_call", stored
        ) == [(1, "answered", 0, -found["prefetch_id"], 1)]
        assert desk.rows("SELECT state, used_by, answer FROM prefetch WHERE prompt = 'two'") == [
            ("used", turn.turn_id, None)
        ]
        assert await desk.states() == ["used", "stale"]
        assert desk.paid() == 2 * COST


async def test_an_answer_is_not_served_once_its_time_is_over(open_desk) -> None:
    async with open_desk(SHOWN) as desk:
        agent = await desk.spawn()
        await desk.call("completion_prefetch", agent="a", prompts=["two"], keep_s=60)
        await desk.rest()
        await desk.call("agent_send", agent="a", message="two")
        ((_, prepared),) = await desk.claim()
        assert await desk.hit(agent, prepared) is not None
        desk.gate.ahead_ms += 61_000
        assert await desk.hit(agent, prepared) is None
        assert await desk.states() == ["stale"]


async def test_nothing_is_called_while_a_turn_waits_or_room_is_short(open_desk) -> None:
    async with open_desk(SHOWN, ceiling=2) as desk:
        await desk.spawn()
        await desk.spawn("other")
        await desk.call("completion_prefetch", agent="a", prompts=["two"])
        await desk.call("agent_send", agent="other", message="a turn that is due")
        await desk.rest()
        assert await desk.states() == ["waiting"]
        await desk.claim()
        desk.room[0] = 1
        await desk.rest()
        assert await desk.states() == ["waiting"]
        desk.room[0] = 2
        desk.slots.take("scripted")
        await desk.rest()
        assert await desk.states() == ["waiting"]
        desk.slots.leave("scripted")
        await desk.rest()
        assert await desk.states() == ["answered"]


async def test_two_places_are_always_left_beside_those_that_prefetches_hold(open_desk) -> None:
    async with open_desk(SLOW) as desk:
        await desk.spawn()
        desk.room[0] = 3
        await desk.call("completion_prefetch", agent="a", prompts=["one", "two", "three"])
        await desk.look()
        assert await desk.states() == ["sent", "sent", "waiting"]
        desk.gate.opened.set()
        await desk.until(lambda: not desk.prefetcher.busy)
        await desk.rest()
        assert await desk.states() == ["answered"] * 3
        assert desk.paid() == 3 * COST


async def test_while_its_agent_works_or_its_run_is_suspended_a_prefetch_waits(open_desk) -> None:
    async with open_desk(SHOWN) as desk:
        agent = await desk.spawn()
        sent = await desk.call("agent_send", agent="a", message="one")
        await desk.claim()
        await desk.call("completion_prefetch", agent="a", prompts=["two"])
        await desk.rest()
        assert await desk.states() == ["waiting"]
        await desk.call("completion_cancel", turn=sent["turn"])
        with sqlite3.connect(desk.app.home.database) as connection:
            connection.execute("UPDATE session SET suspended = 1 WHERE session_id = ?", [agent])
        connection.close()
        await desk.rest()
        assert await desk.states() == ["waiting"]
        with sqlite3.connect(desk.app.home.database) as connection:
            connection.execute("UPDATE session SET suspended = 0 WHERE session_id = ?", [agent])
        connection.close()
        await desk.rest()
        assert await desk.states() == ["answered"]


async def test_a_turn_that_waits_for_room_ends_what_is_under_way_and_it_is_paid_in_full_once(open_desk) -> None:
    async with open_desk(SLOW) as desk:
        await desk.spawn()
        await desk.call("completion_prefetch", agent="a", prompts=["one"])
        await desk.look()
        ((reserved,),) = desk.rows("SELECT reserved_usd_micros FROM hold")
        desk.prefetcher.yield_room("elsewhere")
        await desk.look()
        assert await desk.states() == ["sent"]
        desk.prefetcher.yield_room()
        desk.prefetcher.yield_room()
        await desk.until(lambda: not desk.prefetcher.busy)
        assert await desk.states() == ["cancelled"]
        assert desk.paid() == reserved > COST
        (told,) = desk.events("completion:prefetched")
        assert (told["status"], told["reason"], told["cost_usd_micros"]) == (
            "cancelled", "a turn waited for its place", reserved,
        )  # fmt: skip
        assert len(desk.events("budget:uncertain")) == 1


async def test_another_prompt_ends_what_is_under_way_and_what_waits(open_desk) -> None:
    async with open_desk(SLOW) as desk:
        await desk.spawn()
        desk.room[0] = 2
        await desk.call("completion_prefetch", agent="a", prompts=["one", "two"])
        await desk.look()
        assert await desk.states() == ["sent", "waiting"]
        await desk.call("agent_send", agent="a", message="three")
        await desk.rest()
        assert await desk.states() == ["stale", "stale"]
        assert desk.rows("SELECT DISTINCT error FROM prefetch") == [("another prompt came first",)]
        desk.paid()


async def test_the_same_prompt_does_not_end_what_is_under_way(open_desk) -> None:
    async with open_desk(SLOW) as desk:
        agent = await desk.spawn()
        await desk.call("completion_prefetch", agent="a", prompts=["one"])
        await desk.look()
        await desk.call("agent_send", agent="a", message="one")
        ((_, prepared),) = await desk.claim()
        journal, request = desk.app.services.journal, prepared.wanted.request_hash
        assert await journal.read(lambda tx: prefetch.under_way(tx, request, agent))
        assert await desk.hit(agent, prepared) is None
        await desk.look()
        desk.gate.opened.set()
        await desk.until(lambda: not desk.prefetcher.busy)
        assert (await desk.hit(agent, prepared))["prompt"] == "one"
        assert not await journal.read(lambda tx: prefetch.under_way(tx, request, agent))
        assert desk.paid() == COST


@pytest.mark.parametrize(
    ("reply", "reason", "cost"),
    [
        ({"tool_calls": [{"name": "help", "input": {}}], "usage": USAGE}, "asked for tools", COST),
        ({"reply": "half", "stop_reason": "max_tokens", "usage": USAGE}, "not whole", COST),
        ({"fail": {"kind": "overload"}}, "529", 0),
    ],
)
async def test_what_is_no_whole_answer_is_not_kept_but_paid(
    open_desk, reply: dict[str, Any], reason: str, cost: int
) -> None:
    async with open_desk({"default": reply}) as desk:
        await desk.spawn()
        await desk.call("completion_prefetch", agent="a", prompts=["one"])
        await desk.rest()
        assert await desk.states() == ["failed"]
        assert reason in (await desk.call("completion_prefetch", agent="a"))["prefetches"][0]["reason"]
        assert desk.paid() == cost


async def test_a_call_of_unknown_cost_is_paid_in_full(open_desk) -> None:
    async with open_desk({"default": {"fail": {"kind": "drop"}}}) as desk:
        await desk.spawn()
        await desk.call("completion_prefetch", agent="a", prompts=["one"])
        await desk.rest()
        assert await desk.states() == ["failed"]
        assert desk.paid() > COST


async def test_the_account_is_a_share_of_the_runs_and_its_limit_holds(open_desk) -> None:
    async with open_desk(SHOWN, prefetch={"usd_share": 0.01}) as desk:
        agent = await desk.spawn(budget={"usd": 1})
        shown = await desk.call("completion_prefetch", agent="a", prompts=["one"])
        assert shown["account"]["account"] == f"p_{agent}"
        assert shown["account"]["limit_usd"] == 0.01
        await desk.call("budget_set", account=f"p_{agent}", limits={"usd": 0.0001})
        await desk.rest()
        assert await desk.states() == ["failed"]
        assert "left" in desk.rows("SELECT error FROM prefetch")[0][0]
        assert desk.paid() == 0
        await desk.call("budget_set", account=f"p_{agent}", limits={"usd": 0.01})
        await desk.call("completion_prefetch", agent="a", prompts=["one"])
        await desk.rest()
        assert await desk.states() == ["failed", "answered"]
        await desk.call("budget_set", account=f"p_{agent}", limits={"usd": COST / 1e6})
        with pytest.raises(Exhausted, match="used up"):
            await desk.call("completion_prefetch", agent="a", prompts=["two"])
        assert desk.rows("SELECT spent_usd_micros FROM account WHERE account_id = ?", agent) == [(COST,)]


async def test_what_a_lost_worker_had_under_way_is_paid_in_full_once(open_desk) -> None:
    async with open_desk(SLOW) as desk:
        await desk.spawn()
        await desk.call("completion_prefetch", agent="a", prompts=["one"])
        journal, units = desk.app.services.journal, desk.prefetcher._units
        begun = await journal.commit(lambda tx: units.send(tx, 1, "scripted"))
        assert begun is not None
        assert await journal.read(prefetch.unfinished)
        for _ in range(2):
            await journal.commit(desk.prefetcher.begin)
        assert await desk.states() == ["cancelled"]
        assert not await journal.read(prefetch.unfinished)
        assert desk.paid() > COST
        assert [told["reason"] for told in desk.events("completion:prefetched")] == ["the worker was lost"]


async def test_a_worker_that_ends_pays_for_what_it_had_under_way(open_desk) -> None:
    async with open_desk(SLOW) as desk:
        await desk.spawn()
        await desk.call("completion_prefetch", agent="a", prompts=["one"])
        running = asyncio.create_task(desk.prefetcher.run())
        await desk.until(lambda: desk.prefetcher.busy)
        running.cancel()
        await asyncio.wait([running])
        assert await desk.states() == ["cancelled"]
        assert desk.paid() > COST


async def test_a_worker_that_drains_begins_no_more(open_desk) -> None:
    async with open_desk(SLOW) as desk:
        await desk.spawn()
        await desk.call("completion_prefetch", agent="a", prompts=["one"])
        await desk.look()
        await desk.prefetcher.drain()
        assert await desk.states() == ["cancelled"]
        await desk.call("completion_prefetch", agent="a", prompts=["two"])
        await desk.rest()
        assert await desk.states() == ["cancelled", "waiting"]


async def test_a_model_whose_circuit_is_open_is_left_alone(open_desk) -> None:
    async with open_desk(SHOWN) as desk:
        await desk.spawn()
        breakers, ctx = Breakers(desk.app.services.journal), fresh_context(OPERATOR)

        def fail(tx: Any) -> None:
            for _ in range(5):
                breakers.failed(tx, "scripted", "m", "t_x", "overload", ctx)

        await desk.app.services.journal.commit(fail)
        await desk.call("completion_prefetch", agent="a", prompts=["one"])
        await desk.rest()
        desk.gate.ahead_ms += 40_000
        await desk.rest()
        assert await desk.states() == ["waiting"]
        assert desk.rows("SELECT probe_turn FROM breaker") == [(None,)]


async def test_the_chain_of_causes_goes_on_in_what_is_told(open_desk) -> None:
    async with open_desk(SHOWN) as desk:
        agent = await desk.spawn()
        maker = str(
            (await desk.call("agent_spawn", name="maker", prompt="p", model="m", capabilities=["messaging"]))["agent"]
        )
        ctx = fresh_context(agent_actor(maker))
        chained = type(ctx)(actor=ctx.actor, root_id=ctx.root_id, cause_id="turn:t_1", hops=3, depth=4)
        with pytest.raises(NotFound, match="unknown agent"):
            await desk.app.toolbox.call(chained, "completion_prefetch", {"agent": agent, "prompts": ["one"]})
        await desk.app.toolbox.call(chained, "completion_prefetch", {"agent": maker, "prompts": ["one"]})
        await desk.rest()
        assert desk.rows(
            "SELECT source, agent_id, cause_id, root_id, hops, depth FROM event WHERE name = 'completion:prefetched'"
        ) == [("system", maker, "turn:t_1", ctx.root_id, 3, 4)]
