"""`overshoot`: how far a budget is exceeded when everything that tempts it to happens at once. The answer has to be 0.

Two sides. `ledger`: four processes on one data folder, fifty agents each, reserve and settle as turns do; what a call
truly uses varies up to its reserve, a fifth of the calls time out and settle in full, and whoever was cut off or denied
goes on with another model, at another price. `turns`: sixty agents take the whole real path against a simulated
Messages API with the same habits.

`usd_micros_over` is the most that any account was ever over its limit: in what it had spent and set aside after any
commit, and in what the provider would have billed, which the simulated provider adds up for itself.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import Figure, Result, environment, main, run_child, scratch, setting

from ksi_mcp.app import App, AppOptions
from ksi_mcp.budgets.ledger import Ledger
from ksi_mcp.budgets.model import GLOBAL, Amount, Denied, Hold, Limits
from ksi_mcp.budgets.prices import Prices
from ksi_mcp.clock import SystemClock
from ksi_mcp.config import AnthropicConfig, Config, Home
from ksi_mcp.db import Tx
from ksi_mcp.db.sqlite import SqliteDatabase, open_sqlite
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import EventFilter
from ksi_mcp.permissions import OPERATOR, SYSTEM, fresh_context
from ksi_mcp.providers.base import Request, Usage
from ksi_mcp.providers.script import Planned, Script, parse_script, request_tokens
from ksi_mcp.web.sim import SimServer

PROCESSES = 4
AGENTS_EACH = 50
CALLS = 400
"""That the limit would pay for at the worst price."""
TIMED_OUT = 0.2
MODELS = {"large": (15, 75), "middle": (3, 15), "small": (1, 5)}
"""US dollars for a million tokens in and out, in the order in which they are asked."""
PRICES = {name: {"input_usd_per_mtok": i, "output_usd_per_mtok": o} for name, (i, o) in MODELS.items()}
TOKENS_IN, TOKENS_OUT = 2_000, 1_000
MAX_CALL_S = 0.01
DEEPEST = 2
"""Every so many agents the next is a child of the one before: the tree has a fourth level."""

TURN_AGENTS = 60
TURNS_EACH = 6
TURN_TOKENS = 400
TURN_TIMEOUT_S = 1.0
TURNS_USD = 1.0
TURNS_FOR_S = 15.0
LATE_S = 60.0

RUN = "o_bench"


def price(model: str, tokens_in: int, tokens_out: int) -> int:
    usd_in, usd_out = MODELS[model]
    return usd_in * tokens_in + usd_out * tokens_out


WORST = {model: price(model, TOKENS_IN, TOKENS_OUT) for model in MODELS}
LIMIT = CALLS * WORST["large"]

# ------------------------------------------------------------------------------------ four processes


async def prepare(path: Path) -> None:
    db = await open_sqlite(path, SystemClock())
    ledger = Ledger(Journal(db, SystemClock()))

    def make(tx: Tx) -> None:
        ledger.open_global(tx, Limits(usd_micros=2 * LIMIT))
        ledger.open(tx, RUN, parent_id=GLOBAL, limits=Limits(usd_micros=LIMIT))
        for number in range(PROCESSES * AGENTS_EACH):
            child = number % DEEPEST
            own = Limits(usd_micros=None if child else 12 * WORST["large"])
            ledger.open(tx, f"a_{number}", parent_id=f"a_{number - 1}" if child else RUN, limits=own)

    await db.write(make)
    await db.close()


class Crowd:
    """The agents of one process. Each calls until the cheapest model is denied."""

    def __init__(self, db: SqliteDatabase, first: int) -> None:
        self.db = db
        self.ledger = Ledger(Journal(db, SystemClock()))
        self.chance = random.Random(first)
        self.names = [f"a_{number}" for number in range(first, first + AGENTS_EACH)]
        self.told = {"calls": 0, "timed_out": 0, "billed": 0, "over": 0}

    async def work(self) -> dict[str, int]:
        await asyncio.gather(*(self.agent(name) for name in self.names))
        return self.told

    async def agent(self, name: str) -> None:
        models = list(MODELS)
        link = 0
        while link < len(models):
            model = models[link]
            got = await self.db.write(lambda tx, model=model: self.reserve(tx, name, model))
            if isinstance(got, Denied):
                link += 1  # as the policy `downgrade` says
            elif isinstance(got, Hold):
                link = (link + 1) % len(models) if await self.call(got, model) else 0
            else:
                await asyncio.sleep(MAX_CALL_S)  # what it waits for may happen in another process

    async def call(self, hold: Hold, model: str) -> bool:
        """One attempt; whether it timed out, so that the next model is asked."""
        ctx = fresh_context(SYSTEM)
        # Up to the very maximum that was set aside: a tenth of the calls use all of it.
        full = self.chance.random() < 0.1
        used = (TOKENS_IN, TOKENS_OUT) if full else (
            self.chance.randint(0, TOKENS_IN), self.chance.randint(0, TOKENS_OUT),
        )  # fmt: skip
        cost = Amount(usd_micros=price(model, *used), tokens=sum(used))
        late = self.chance.random() < TIMED_OUT
        await asyncio.sleep(self.chance.random() * MAX_CALL_S)
        self.told["calls"] += 1
        self.told["timed_out"] += late
        self.told["billed"] += cost.usd_micros
        await self.db.write(lambda tx: self.settle(tx, hold, None if late else cost, ctx))
        return late

    def reserve(self, tx: Tx, name: str, model: str) -> Any:
        wanted = Amount(usd_micros=WORST[model], tokens=TOKENS_IN + TOKENS_OUT)
        got = self.ledger.reserve(tx, name, turn_id=f"t_{name}", wanted=wanted, new_turn=False, sent=True)
        self.look(tx, name)
        return got

    def settle(self, tx: Tx, hold: Hold, cost: Amount | None, ctx: Any) -> None:
        if cost is None:
            self.ledger.settle_in_full(tx, hold.hold_id, ctx)
        else:
            self.ledger.settle(tx, hold.hold_id, cost, ctx)
        self.look(tx, hold.account_id)

    def look(self, tx: Tx, name: str) -> None:
        for account in self.ledger.path(tx, name):
            if (most := account.limits.usd_micros) is not None:
                over = account.spent_usd_micros + account.reserved_usd_micros - most
                self.told["over"] = max(self.told["over"], over)


def child_crowd(args: list[str]) -> dict[str, int]:
    async def work() -> dict[str, int]:
        db = await open_sqlite(args[0], SystemClock())
        try:
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            return await Crowd(db, int(args[1])).work()
        finally:
            await db.close()

    return asyncio.run(work())


def ledger_run() -> dict[str, float]:
    with scratch() as home:
        path = home / "ksi.db"
        asyncio.run(prepare(path))
        command = [sys.executable, __file__, "--child", "crowd", str(path)]
        children = [
            subprocess.Popen(
                [*command, str(number * AGENTS_EACH)], env=environment(home), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
            for number in range(PROCESSES)
        ]  # fmt: skip
        for child in children:
            if child.stdout is None or child.stdout.readline() != "ready\n":
                raise SystemExit("a process did not start")
        for child in children:  # all at once, now that all of them are there
            assert child.stdin
            child.stdin.write("go\n")
            child.stdin.flush()
        told = [json.loads(child.communicate(timeout=60)[0]) for child in children]
        if any(child.returncode for child in children):
            raise SystemExit("a process failed")
        spent = at_rest(path, RUN)
        billed = sum(each["billed"] for each in told)
        return {
            "over": max(0, billed - LIMIT, spent - LIMIT, *(each["over"] for each in told)),
            "left": (LIMIT - spent) / WORST["small"],
            "calls": sum(each["calls"] for each in told),
            "busy": sum(each["calls"] > 0 for each in told),
        }


def at_rest(path: Path, account: str) -> int:
    """What an account has spent, once it is clear that the books are in order."""
    connection = sqlite3.connect(path)
    try:
        ((loose,),) = connection.execute("SELECT TOTAL(reserved_usd_micros) FROM account")
        ((paid,),) = connection.execute("SELECT SUM(cost_usd_micros) FROM hold")
        ((booked,),) = connection.execute("SELECT spent_usd_micros FROM account WHERE account_id = 'global'")
        ((spent,),) = connection.execute("SELECT spent_usd_micros FROM account WHERE account_id = ?", (account,))
    finally:
        connection.close()
    if loose or paid != booked:
        raise SystemExit(f"the books are wrong: {loose} set aside at rest, {paid} paid, {booked} booked")
    return int(spent)


# ------------------------------------------------------------------------------------- the whole path


class Habits(Script):
    """Uses anything up to what it may, comes too late every fifth time, and knows what it would bill."""

    def __init__(self) -> None:
        super().__init__(parse_script({"default": {"reply": "done"}}))
        self.chance = random.Random(1)
        self.prices = Prices(PRICES)
        self.billed = self.calls = self.late = 0
        self.models: set[str] = set()

    def answer(self, request: Request) -> Planned:
        planned = super().answer(request)
        output = request.max_tokens if self.chance.random() < 0.1 else self.chance.randint(1, request.max_tokens)
        usage = Usage(input_tokens=request_tokens(request), output_tokens=output)
        late = self.chance.random() < TIMED_OUT
        self.calls += 1
        self.late += late
        self.models.add(request.model)
        self.billed += self.prices.cost_usd_micros("anthropic", request.model, usage)
        return replace(planned, usage=usage, latency_s=LATE_S if late else self.chance.random() * MAX_CALL_S)


COMPOSITION = f"""
name: worker
type: agent
version: 1.0.0
description: One of many.
prompt: You work.
model: large
fallback: [middle, small]
max_tokens: {TURN_TOKENS}
timeout_s: {TURN_TIMEOUT_S}
"""


def child_turns(args: list[str]) -> dict[str, float]:
    return asyncio.run(turns_run(Path(args[0])))


async def turns_run(root: Path) -> dict[str, float]:
    folder = root / "compositions" / "agents"
    folder.mkdir(parents=True)
    (folder / "worker.yaml").write_text(COMPOSITION, "utf-8")
    habits = Habits()
    async with SimServer(habits) as sim:
        config = Config(provider="anthropic", anthropic=AnthropicConfig(base_url=sim.url), prices=PRICES)
        options = AppOptions(worker="inside", environ={"ANTHROPIC_API_KEY": "simulated"})
        async with App(Home(root=root), options, config=config) as app:

            async def call(tool: str, **arguments: Any) -> dict[str, Any]:
                return (await app.toolbox.call(fresh_context(OPERATOR), tool, arguments)).data

            budget = {"usd": TURNS_USD, "policy": "downgrade"}
            boss = (await call("agent_spawn", composition="worker", name="boss", capabilities=[], budget=budget))[
                "agent"
            ]
            names = [f"agent{number}" for number in range(TURN_AGENTS)]
            for name in names:
                await call("agent_spawn", composition="worker", name=name, capabilities=[], parent=boss)
            for _ in range(TURNS_EACH):
                for name in names:
                    await call("agent_send", agent=name, message="Go on.")
            over, denied = await watched(app, boss)
            for name in names:
                await call("agent_terminate", agent=name)
            await settled(app)
        spent = at_rest(root / "ksi.db", boss)
    limit = round(TURNS_USD * 1_000_000)
    if habits.billed > spent:
        raise SystemExit(f"{habits.billed - spent} micro-dollars were billed and not booked")
    return {
        "over": max(0, over, spent - limit, habits.billed - limit),
        "calls": habits.calls,
        "late": habits.late,
        "denied": denied,
        "share": spent / limit,
        "models": len(habits.models),
    }


async def watched(app: App, boss: str) -> tuple[int, int]:
    """How far the account was over its limit at most, and how many calls were denied; until all turns have ended."""
    most = 0
    until_s = asyncio.get_running_loop().time() + TURNS_FOR_S
    while await app.unfinished() and asyncio.get_running_loop().time() < until_s:
        account = await app.services.journal.read(lambda tx: app.services.ledger.account(tx, boss))
        limit = account.limits.usd_micros or 0
        most = max(most, account.spent_usd_micros + account.reserved_usd_micros - limit)
        await asyncio.sleep(0.005)
    found = await app.services.journal.query(EventFilter(names=("agent:budget_exceeded",)), limit=1_000)
    return most, len(found.events)


async def settled(app: App) -> None:
    """Until what was cut off by the end is paid for."""
    until_s = asyncio.get_running_loop().time() + 10
    while asyncio.get_running_loop().time() < until_s:
        loose = await app.services.journal.read(lambda tx: app.services.ledger.account(tx, GLOBAL).reserved_usd_micros)
        if not loose:
            return
        await asyncio.sleep(0.02)


def turns_side() -> dict[str, float]:
    with scratch() as home:
        found: dict[str, float] = run_child(__file__, "turns", str(home), home=home)
        return found


# -------------------------------------------------------------------------------------------- figures


def measure(runs: int) -> Result:
    sides: tuple[tuple[int, Callable[[], dict[str, float]]], ...] = ((runs, ledger_run), (1, turns_side))
    ledger, (turns,) = ([side() for _ in range(count)] for count, side in sides)
    over = max(*(each["over"] for each in ledger), turns["over"])
    return Result(
        name="overshoot",
        figures=[
            # One run over its limit would be one too many: no median may hide it.
            Figure(key="usd_micros_over", values=[over], goal=0),
            Figure(key="reserves_left", values=[each["left"] for each in ledger], goal=1),
            Figure(key="calls", values=[each["calls"] for each in ledger]),
            Figure(key="calls_of_turns", values=[turns["calls"]]),
        ],
        setting=setting(
            f"{runs} runs of {PROCESSES} processes x {AGENTS_EACH} agents on one file ({ledger[-1]['busy']:g} of them "
            f"made calls in the last); 1 run of {TURN_AGENTS} agents x {TURNS_EACH} turns through the Anthropic SDK "
            f"against api-sim: {turns['late']:g} of {turns['calls']:g} calls timed out, {turns['models']:g} models "
            f"answered, {turns['denied']:g} were denied, {turns['share']:.1%} of the limit was spent; "
            f"usage random up to the reserve, a tenth at it; synchronous=FULL"
        ),
    )


if __name__ == "__main__":
    main(measure, {"crowd": child_crowd, "turns": child_turns})
