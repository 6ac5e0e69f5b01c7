"""`route_durable`: how many events a second are emitted, stored, matched with 1,000 rules and delivered, each durable.

Fifty emitters call `event_emit` and wait for its answer, as clients do: the event and its place in the outbox are one
transaction, its deliveries by the pump another. An event counts when its `routing:delivered` is on the disk. Every
event is heard by one rule, whose target is an event name, so a delivery is a new event that goes through the outbox
in its turn and is heard by nobody. The table is the mixed one of `route_match`, made rule by rule with
`routing_add_rule`; no name comes twice but those without a star.

`recorded` is the same with events that the server makes itself, for which no tool is called (`Journal.record`).

The times from the call of `event_emit` to the durable `routing:delivered` are for one emitter at a modest rate. Beside
them what the disk needs for one commit (4 KiB, appended, `fdatasync`); there are two on the way.
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench_latency import fsync
from bench_route_match import CONDITION, pattern
from harness import Figure, Result, main, run_child, scratch, setting, take_turns

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home
from ksi_mcp.db import Tx
from ksi_mcp.db.sqlite import SqliteTx
from ksi_mcp.events.journal import Subscription
from ksi_mcp.permissions import OPERATOR, fresh_context

RULES = 1_000
EMITTERS = 50
EVENTS = 2_000
"""Of all emitters together, a run."""
MODEST = 500
"""Events of the run that measures times; the 99th percentile is the fifth largest."""
PER_SECOND = 50
"""How many of them a second, on average."""
WARM_UP = 100
WAIT_S = 30

Emit = Callable[[str], Awaitable[int]]
"""Emits an event of that name; its id, once it is durable."""


class Bench:
    """An application with the table, and who hears what was delivered."""

    def __init__(self, home: Path) -> None:
        self.app = App(Home(root=home), AppOptions(worker="inside", environ={}), config=Config(provider="scripted"))
        self.delivered: dict[int, float] = {}
        """When the delivery of an event was durable, by its id."""
        self.numbers = iter(range(10**9))

    async def prepare(self) -> None:
        for n in range(RULES):
            condition = {"condition": CONDITION} if n % 5 == 0 else {}
            await self.call("routing_add_rule", source_pattern=pattern(n, RULES), target="work:next", **condition)
        async with self.heard() as heard:
            await self.hear(heard, [await self.emitted(self.name()) for _ in range(WARM_UP)])

    def heard(self) -> Subscription:
        return self.app.services.journal.subscribe(lambda event: event.name == "routing:delivered")

    async def hear(self, heard: Subscription, ids: list[int]) -> None:
        """Wait until all of these are delivered."""
        while any(event_id not in self.delivered for event_id in ids):
            event = await heard.next(WAIT_S)
            if event is None:
                raise SystemExit(f"{sum(each not in self.delivered for each in ids)} events were not delivered")
            self.delivered[event.data["event_id"]] = time.monotonic()

    def name(self) -> str:
        number = next(self.numbers)
        n = number * 7919 % RULES
        return pattern(n, RULES).replace("**", f"x{number}:y").replace("*", f"x{number}")

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return (await self.app.toolbox.call(fresh_context(OPERATOR), tool, arguments)).data

    async def emitted(self, name: str) -> int:
        done = await self.call("event_emit", event=name, data={"score": 0.9, "kind": "final", "task": 1})
        return int(done["event_id"])

    async def recorded(self, name: str) -> int:
        journal, ctx = self.app.services.journal, fresh_context(OPERATOR)

        def work(tx: Tx) -> int:
            return journal.record(tx, name, {"score": 0.9, "kind": "final", "task": 1}, ctx).event_id

        return await journal.commit(work)

    async def rate(self, emit: Emit) -> float:
        """Delivered events a second."""
        ids: list[int] = []

        async def emitter() -> None:
            ids.extend([await emit(self.name()) for _ in range(EVENTS // EMITTERS)])

        async with self.heard() as heard:
            began = time.perf_counter()
            await asyncio.gather(*(emitter() for _ in range(EMITTERS)))
            await self.hear(heard, ids)
            return len(ids) / (time.perf_counter() - began)

    async def times(self) -> list[float]:
        """[median, 99th percentile] in ms from the call to the durable delivery."""
        waits = []
        async with self.heard() as heard:
            for _ in range(MODEST):
                await asyncio.sleep(random.uniform(0, 2 / PER_SECOND))
                began = time.monotonic()
                event_id = await self.emitted(self.name())
                await self.hear(heard, [event_id])
                waits.append((self.delivered[event_id] - began) * 1000)
        return [statistics.median(waits), statistics.quantiles(waits, n=100)[98]]


async def on(home: Path, measured: Callable[[Bench], Awaitable[Any]]) -> Any:
    bench = Bench(home)
    async with bench.app:
        await bench.prepare()
        return await measured(bench)


def child_profile(args: list[str]) -> None:
    """`bench_route_durable.py --child profile DIR`: where the time of the event loop's thread goes."""
    profile = cProfile.Profile()

    async def profiled(bench: Bench) -> None:
        profile.enable()
        await bench.rate(bench.emitted)
        profile.disable()

    asyncio.run(on(Path(args[0]), profiled))
    pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(25)


class Statements:
    """What the database's threads do from now on, by statement, in processor time."""

    def __init__(self) -> None:
        self.count = Counter[str]()
        self.spent_ns = Counter[str]()
        self.began_ns = time.process_time_ns()
        for name in ("run", "one", "all"):
            setattr(SqliteTx, name, self._watched(getattr(SqliteTx, name)))

    def show(self, times: int, what: str) -> None:
        whole_ns = time.process_time_ns() - self.began_ns
        print(f"{whole_ns / times / 1000:.0f} us of processor {what}, {self.spent_ns.total() / times / 1000:.0f} of")
        print(f"them in {self.count.total() / times:.1f} statements:")
        for name, nanoseconds in self.spent_ns.most_common():
            each, whole = nanoseconds / self.count[name] / 1000, nanoseconds / times / 1000
            print(f"{name:32}{self.count[name] / times:7.2f} {what}{each:9.1f} us each{whole:8.1f} us {what}")

    def _watched(self, run: Any) -> Any:
        def timed(tx: SqliteTx, name: str, params: dict[str, Any] | None = None, /) -> Any:
            began_ns = time.thread_time_ns()
            try:
                return run(tx, name, params)
            finally:
                self.count[name] += 1
                self.spent_ns[name] += time.thread_time_ns() - began_ns

        return timed


def child_statements(args: list[str]) -> None:
    """`bench_route_durable.py --child statements DIR`: what the database's threads do for an event."""

    async def counted(bench: Bench) -> None:
        statements = Statements()
        await bench.rate(bench.emitted)
        statements.show(EVENTS, "an event")

    asyncio.run(on(Path(args[0]), counted))


def measure(runs: int) -> Result:
    def side(name: str) -> Any:
        with scratch() as home:
            return run_child(__file__, name, str(home), home=home)

    found = take_turns(runs, {name: lambda name=name: side(name) for name in ("emitted", "recorded", "times", "fsync")})
    return Result(
        name="route_durable",
        figures=[
            Figure(key="per_second_at_1000", values=found["emitted"], unit="1/s", goal=2_000, at_most=False),
            Figure(key="per_second_recorded", values=found["recorded"], unit="1/s", at_most=False),
            Figure(key="p50_ms", values=[run[0] for run in found["times"]], unit="ms"),
            Figure(key="p99_ms", values=[run[1] for run in found["times"]], unit="ms", goal=10),
        ],
        peers={
            "fsync": [
                Figure(key="p50_ms", values=[run[0] for run in found["fsync"]], unit="ms"),
                Figure(key="p99_ms", values=[run[1] for run in found["fsync"]], unit="ms"),
            ]
        },
        setting=setting(
            f"{runs} runs; {RULES} rules, mixed as in route_match, added one by one; {EVENTS} events of {EMITTERS} "
            f"emitters that wait for the answer of event_emit, counted when routing:delivered is durable (recorded: "
            f"Journal.record instead of the tool); one delivery each, to an event name; pump in the same process; "
            f"times: one emitter, {MODEST} events at {PER_SECOND} a second, from the call to the durable delivery, two "
            f"commits; WAL, synchronous=FULL; fsync: 4 KiB appended and fdatasync"
        ),
    )


CHILDREN: dict[str, Callable[[list[str]], object]] = {
    "emitted": lambda args: asyncio.run(on(Path(args[0]), lambda bench: bench.rate(bench.emitted))),
    "recorded": lambda args: asyncio.run(on(Path(args[0]), lambda bench: bench.rate(bench.recorded))),
    "times": lambda args: asyncio.run(on(Path(args[0]), Bench.times)),
    "fsync": lambda args: fsync(Path(args[0])),
    "profile": child_profile,
    "statements": child_statements,
}

if __name__ == "__main__":
    main(measure, CHILDREN)
