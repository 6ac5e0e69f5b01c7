"""`route_match`: how many events a second find their rules, in tables of 10, 1,000 and 10,000 rules.

A match is what a delivery asks: the rules whose pattern hears the name, in the order in which they fire, and for each
of them whether it fires, with its condition evaluated and its payload made (`judge` over `RuleTable.candidates`).
Nothing is stored and nothing delivered. The table is mixed: half of the patterns without a star, a third with `*` in
all its places, the rest with `**`; a fifth of the rules has a condition, which holds for half of the events.

Every event is meant for one rule of the table, each rule in turn, under a name that the table has never met, so that
what is remembered of names (the memo) helps nothing; the figures with `memo` are for 1,000 names that it has met.

Beside it the same question answered by a scan over all rules, with our patterns and with `fnmatch`, and autogen-core,
whose publish/subscribe matches topics to subscriptions (half exact, half prefixes; no conditions) and calls a handler
in memory.
"""

from __future__ import annotations

import cProfile
import pstats
import random
import sys
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from harness import Figure, Peer, Result, main, run_child, scratch, setting, take_turns

from ksi_mcp.events.model import Event
from ksi_mcp.ids import EventId, RuleId
from ksi_mcp.routing.index import RuleIndex, RuleTable
from ksi_mcp.routing.matching import judge
from ksi_mcp.routing.rules import CompiledRule, Rule, compile_rule
from ksi_mcp.routing.targets import targets_of

SIZES = (10, 1_000, 10_000)
EVENTS = 20_000
"""A run, for our own table of any size."""
SCANNED = {10: 5_000, 1_000: 500, 10_000: 50}
"""Events a run for those that look at every rule."""
PUBLISHED = {10: 2_000, 1_000: 1_000, 10_000: 300}
PEER_RUNS = 5
MEMO_NAMES = 1_000
WARM_UP = 20
BATCH = 10
"""Events that are made, and then timed: whatever the size of the table they are fresh in the processor's memory."""
CONDITION = 'data.score > 0.5 and data.kind == "final"'
SHAPES: tuple[str, ...] = (
    "team{team}:job{n}:*",
    "team{team}:*:note{n}",
    "team{team}:part{n}_*:done",
    "*:item{n}:ready",
    "*_{n}:built",
    "run_*_of{n}:closed",
)
DEEP: tuple[str, ...] = ("team{team}:log{n}:**", "**:alarm{n}", "plan{n}:**:done")
TEAM = 10
"""Rules that share their first segment."""

Table = Any
"""What `judge` asks for candidates."""


def pattern(n: int, rules: int) -> str:
    """The pattern of rule `n` of so many."""
    if n < rules / 2:
        return f"team{n // TEAM}:task{n}:done"
    shapes = SHAPES if n < rules * 5 / 6 else DEEP
    return shapes[n % len(shapes)].format(n=n, team=n // TEAM)


def rule(n: int, rules: int) -> CompiledRule:
    return compile_rule(
        Rule(
            rule_id=RuleId(f"r{n}"),
            source_pattern=pattern(n, rules),
            source_agent=None,
            condition=CONDITION if n % 5 == 0 else None,
            target=targets_of("work:next"),
            mapping=None,
            priority=100 + n % 3,
            scope="global",
            orchestration_id=None,
            enabled=True,
            created_by="operator",
            version=n + 1,
            created_at_ms=0,
            expires_at_ms=None,
            metadata={},
        )
    )


def rules_of(size: int) -> list[CompiledRule]:
    return [rule(n, size) for n in range(size)]


def event(number: int, name: str) -> Event:
    return Event(
        event_id=EventId(number),
        name=name,
        data={"score": number % 10 / 10 + 0.05, "kind": "final", "task": number},
        source="operator",
        agent_id=None,
        orchestration_id=None,
        cause_id=None,
        root_id="r_bench",
        hops=0,
        depth=0,
        at_ms=0,
    )


def rounds(size: int, events: int) -> Iterator[list[str]]:
    """Names for at least so many events, each meant for one rule; none comes twice in a round."""
    chance = random.Random(size)
    number, each = 0, min(size, events)
    while number < events:
        found = []
        for n in chance.sample(range(size), each):
            number += 1
            found.append(pattern(n, size).replace("**", f"x{number}:y").replace("*", f"x{number}"))
        yield found


def decide(table: Table, one: Event) -> int:
    return sum(match.outcome == "fires" for match in judge(table, one, now_ms=1, name_of=lambda _agent_id: None))


def seconds(table: Table, names: list[str]) -> tuple[float, int]:
    """How long it takes to decide on an event of each of these names, and how many rules fired."""
    took, fired = 0.0, 0
    for start in range(0, len(names), BATCH):
        events = [event(start + n, name) for n, name in enumerate(names[start : start + BATCH])]
        began = time.perf_counter()
        for one in events:
            fired += decide(table, one)
        took += time.perf_counter() - began
    return took, fired


class Scan:
    """A table without an index."""

    def __init__(self, rules: list[CompiledRule], hears: Callable[[CompiledRule, str], bool]) -> None:
        self._rules = sorted(rules, key=lambda each: each.rule.order())
        self._hears = hears

    def candidates(self, name: str) -> list[CompiledRule]:
        return [each for each in self._rules if self._hears(each, name)]


def unseen(make: Callable[[list[CompiledRule]], Table], size: int, events: int) -> list[float]:
    """[matches a second, rules that fired for an event]."""
    table = make(rules_of(size))
    seconds(table, next(rounds(size, events))[:WARM_UP])
    took, fired, met = 0.0, 0, 0
    for names in rounds(size, events):
        if isinstance(table, RuleTable):
            table.index._memo.clear()  # noqa: SLF001  names without a star cannot be new in every round
        one_took, one_fired = seconds(table, names)
        took, fired, met = took + one_took, fired + one_fired, met + len(names)
    return [met / took, fired / met]


def indexed(rules: list[CompiledRule]) -> RuleTable:
    return RuleTable(version=1, index=RuleIndex(rules))


def child_ours(args: list[str]) -> list[float]:
    return unseen(indexed, int(args[0]), EVENTS)


def child_memo(args: list[str]) -> list[float]:
    size = int(args[0])
    table = indexed(rules_of(size))
    names = [name for found in rounds(size, MEMO_NAMES) for name in found][:MEMO_NAMES]
    seconds(table, names)
    took, fired = seconds(table, names * (EVENTS // MEMO_NAMES))
    return [EVENTS / took, fired / EVENTS]


def child_naive(args: list[str]) -> list[float]:
    size = int(args[0])
    return unseen(lambda rules: Scan(rules, lambda each, name: each.pattern.matches(name)), size, SCANNED[size])


def child_fnmatch(args: list[str]) -> list[float]:
    size = int(args[0])
    return unseen(
        lambda rules: Scan(rules, lambda each, name: fnmatchcase(name, each.rule.source_pattern)), size, SCANNED[size]
    )


def child_profile(args: list[str]) -> None:
    """`bench_route_match.py --child profile SIZE`: where the time of a match goes."""
    table = indexed(rules_of(int(args[0])))
    names = [name for found in rounds(int(args[0]), EVENTS) for name in found]
    profile = cProfile.Profile()
    profile.runcall(seconds, table, names)
    pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(20)


def measure(runs: int) -> Result:
    autogen = Peer("autogen_core", "autogen-core==0.7.*")
    names = ["ours", "memo", "naive", "fnmatch", *(["autogen_core"] if autogen.available else [])]

    def side(name: str, size: int) -> Any:
        with scratch() as home:
            if name == "autogen_core":
                return autogen.run("match", str(size), str(PUBLISHED[size]), home=home)
            return run_child(__file__, name, str(size), home=home)

    sides = {f"{name} {size}": partial(side, name, size) for size in SIZES for name in names}
    slow = {key: PEER_RUNS for key in sides if key.split()[0] not in ("ours", "memo")}
    found = take_turns(runs, sides, fewer=slow)

    def rates(name: str, key: str, part: int = 0) -> list[Figure]:
        return [
            Figure(
                key=key.format(size), values=[run[part] for run in found[f"{name} {size}"]], unit="1/s", at_most=False
            )
            for size in SIZES
        ]

    def growth(name: str) -> list[float]:
        few, many = (found[f"{name} {size}"] for size in (SIZES[0], SIZES[-1]))
        return [a[0] / b[0] for a, b in zip(few, many, strict=True)]

    def figures(name: str) -> list[Figure]:
        return [*rates(name, "per_second_{}"), Figure(key="growth_10_to_10000", values=growth(name))]

    peers = {name: figures(name) for name in ("naive", "fnmatch")}
    if autogen.available:
        peers["autogen_core"] = [*figures("autogen_core"), *rates("autogen_core", "per_second_memo_{}", 1)]
    fired = ", ".join(f"{found[f'ours {size}'][0][1]:.2f}" for size in SIZES)
    return Result(
        name="route_match",
        figures=[
            *rates("ours", "per_second_{}"),
            Figure(key="growth_10_to_10000", values=growth("ours"), goal=3),
            *rates("memo", "per_second_memo_{}"),
            Figure(key="growth_memo_10_to_10000", values=growth("memo")),
        ],
        peers=peers,
        setting=setting(
            f"{runs} runs; half of the patterns exact, a third with *, the rest with **, conditions on a fifth; a "
            f"match is candidates and judge, conditions and payload included; {EVENTS} events a run, each meant for "
            f"one rule ({fired} fire), names never met before; memo: {MEMO_NAMES} names that were met",
            f"naive and fnmatch: a scan of all rules, {', '.join(str(SCANNED[size]) for size in SIZES)} events",
            f"{autogen}: publish_message to its handler in memory, SingleThreadedAgentRuntime, TypeSubscription and "
            f"TypePrefixSubscription, {', '.join(str(PUBLISHED[size]) for size in SIZES)} messages; memo: met topics",
        ),
    )


CHILDREN: dict[str, Callable[[list[str]], object]] = {
    "ours": child_ours,
    "memo": child_memo,
    "naive": child_naive,
    "fnmatch": child_fnmatch,
    "profile": child_profile,
}

if __name__ == "__main__":
    main(measure, CHILDREN)
