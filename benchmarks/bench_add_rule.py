"""`add_rule`: how long it takes to add one rule to a table that has 10,000, durable and heard by the next event.

From the call of `routing_add_rule` to its answer: checks, quota, the search for a circle, the row with its history,
the event that tells of it, the commit. The table is the mixed one of `route_match`; the new rules are of its kinds,
and every one has an event as its target, so that the search for circles is made. One rule at a time, nothing else
going on; the table in memory follows, and every so often its index is built anew: that is in the 99th percentile.

Beside it the same at a table of 100 rules, and what the disk needs for one commit (4 KiB, appended, `fdatasync`).
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench_latency import PAUSE_S, fsync
from bench_route_durable import Statements
from bench_route_match import CONDITION, pattern
from harness import Figure, Result, main, run_child, scratch, setting, take_turns

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home
from ksi_mcp.db import Tx
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.routing.rules import RuleDraft

RULES = 10_000
FEW = 100
ADDED = 600
"""More than are kept beside an index, so that at least one new index is among what is measured."""
WARM_UP = 20
AT_ONCE = 50
"""Rules that one transaction of the preparation adds."""
MIXED = 2 * RULES
"""The mixed table from which the rules are drawn: those of the table, and those that are added."""


def drawn(count: int) -> list[dict[str, Any]]:
    """So many different rules of the mixed table, in no order, as `routing_add_rule` takes them."""
    found = []
    for n in random.Random(1).sample(range(MIXED), count):
        condition = {"condition": CONDITION} if n % 5 == 0 else {}
        found.append({"source_pattern": pattern(n, MIXED), "target": "work:next", **condition})
    return found


async def with_table(home: Path, rules: int, measured: Callable[[App, list[dict[str, Any]]], Awaitable[Any]]) -> Any:
    """What was measured with a table of so many rules, and the rules that are to be added to it."""
    wanted = drawn(rules + WARM_UP + ADDED)
    app = App(Home(root=home), AppOptions(worker="inside", environ={}), config=Config(provider="scripted"))
    async with app:
        router, ctx = app.services.router, fresh_context(OPERATOR)

        def add(tx: Tx, some: list[dict[str, Any]]) -> None:
            for each in some:
                router.add_rule(tx, ctx, RuleDraft(**each))

        for start in range(0, rules, AT_ONCE):
            await router.refresh()
            await app.services.journal.commit(partial(add, some=wanted[start : min(start + AT_ONCE, rules)]))
        await routed(app)
        for each in wanted[rules : rules + WARM_UP]:
            await added(app, each)
        await routed(app)
        return await measured(app, wanted[rules + WARM_UP :])


async def routed(app: App) -> None:
    """Route what waits: every added rule is an event."""
    while await app.services.router.pump_once():
        pass


async def added(app: App, rule: dict[str, Any]) -> float:
    """How long adding this rule takes, in ms."""
    began = time.perf_counter()
    await app.toolbox.call(fresh_context(OPERATOR), "routing_add_rule", rule)
    return (time.perf_counter() - began) * 1000


async def times(app: App, rules: list[dict[str, Any]]) -> list[float]:
    """[median, 99th percentile] in ms."""
    waits = []
    for each in rules:
        waits.append(await added(app, each))
        await asyncio.sleep(random.uniform(*PAUSE_S))
    return [statistics.median(waits), statistics.quantiles(waits, n=100)[98]]


def child_profile(args: list[str]) -> None:
    """`bench_add_rule.py --child profile DIR`: where the time of the event loop's thread goes."""
    profile = cProfile.Profile()

    async def profiled(app: App, rules: list[dict[str, Any]]) -> None:
        profile.enable()
        for each in rules:
            await added(app, each)
        profile.disable()

    asyncio.run(with_table(Path(args[0]), RULES, profiled))
    pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(25)


def child_statements(args: list[str]) -> None:
    """`bench_add_rule.py --child statements DIR`: what the database's threads do for a rule, by statement."""

    async def counted(app: App, rules: list[dict[str, Any]]) -> None:
        statements = Statements()
        for each in rules:
            await added(app, each)
        statements.show(len(rules), "a rule")

    asyncio.run(with_table(Path(args[0]), RULES, counted))


def measure(runs: int) -> Result:
    def side(*args: str) -> Any:
        with scratch() as home:
            return run_child(__file__, args[0], str(home), *args[1:], home=home)

    sides = {
        "many": lambda: side("times", str(RULES)),
        "few": lambda: side("times", str(FEW)),
        "fsync": lambda: side("fsync"),
    }
    found = take_turns(runs, sides)

    def figure(side: str, key: str, part: int, goal: float | None = None) -> Figure:
        return Figure(key=key, values=[run[part] for run in found[side]], unit="ms", goal=goal)

    return Result(
        name="add_rule",
        figures=[
            figure("many", f"ms_at_{RULES}", 0, 5),
            figure("many", f"p99_ms_at_{RULES}", 1),
            figure("few", f"ms_at_{FEW}", 0),
            figure("few", f"p99_ms_at_{FEW}", 1),
        ],
        peers={"fsync": [figure("fsync", "p50_ms", 0), figure("fsync", "p99_ms", 1)]},
        setting=setting(
            f"{runs} runs of {ADDED} rules, one after the other, {PAUSE_S[0] * 1000:g} to {PAUSE_S[1] * 1000:g} ms "
            f"apart; tables mixed as in route_match; from the call of routing_add_rule to its answer, one commit; pump "
            f"in the same process; WAL, synchronous=FULL; fsync: 4 KiB appended and fdatasync"
        ),
    )


CHILDREN: dict[str, Callable[[list[str]], object]] = {
    "times": lambda args: asyncio.run(with_table(Path(args[0]), int(args[1]), times)),
    "fsync": lambda args: fsync(Path(args[0])),
    "profile": child_profile,
    "statements": child_statements,
}

if __name__ == "__main__":
    main(measure, CHILDREN)
