"""Laws of the table, on tables and events that nobody chose. Each example is large, so that few are many."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from ksi_mcp.db import Tx
from ksi_mcp.ids import RuleId
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.routing.index import RuleIndex, RuleTable
from ksi_mcp.routing.rules import CompiledRule, Rule, RuleDraft, compile_rule
from ksi_mcp.routing.targets import targets_of

SEGMENTS = ["a", "b", "ab", "ba", "x.y", "routing", "system", "task"]
PATTERN_SEGMENTS = [*SEGMENTS, "*", "*", "**", "a*", "*b", "*a*", "t*k"]


def compiled(rule_id: str, pattern: str, priority: int) -> CompiledRule:
    return compile_rule(
        Rule(
            rule_id=RuleId(rule_id), source_pattern=pattern, source_agent=None, condition=None, mapping=None,
            target=targets_of("x:y"), priority=priority, scope="global", orchestration_id=None, enabled=True,
            created_by="operator", version=1, created_at_ms=0, expires_at_ms=None, metadata={},
        )
    )  # fmt: skip


def heard(pattern: str, name: str) -> bool:
    """The definition, spelled out: `**` any number of segments, `*` any run of characters within one."""
    return pattern == "*" or walk(pattern.split(":"), name.split(":"))


def walk(pattern: list[str], name: list[str]) -> bool:
    if not pattern:
        return not name
    first, *rest = pattern
    if first == "**":
        return any(walk(rest, name[skipped:]) for skipped in range(len(name) + 1))
    return bool(name) and fits(first, name[0]) and walk(rest, name[1:])


def fits(glob: str, text: str) -> bool:
    if not glob:
        return not text
    if glob[0] == "*":
        return any(fits(glob[1:], text[skipped:]) for skipped in range(len(text) + 1))
    return bool(text) and glob[0] == text[0] and fits(glob[1:], text[1:])


def naive(rules: list[tuple[str, str, int]], name: str) -> list[str]:
    """Look at every rule; events of the server need a first segment that is spelled out."""
    first = name.partition(":")[0]
    reserved = first in ("routing", "system")
    found = [
        (-priority, rule_id)
        for rule_id, pattern, priority in rules
        if heard(pattern, name) and (not reserved or pattern.partition(":")[0] == first)
    ]
    return [rule_id for _, rule_id in sorted(found)]


@pytest.mark.parametrize("seed", range(5))
def test_the_index_hears_what_a_look_at_every_rule_hears(seed: int) -> None:
    chance = random.Random(seed)
    compared = 0
    for _ in range(20):
        rules = [
            (f"r{n:03}", ":".join(chance.choices(PATTERN_SEGMENTS, k=chance.randint(1, 4))), chance.randint(1, 3))
            for n in range(chance.randint(0, 40))
        ]
        made = {rule_id: compiled(rule_id, pattern, priority) for rule_id, pattern, priority in rules}
        # Some of it is in the index, some was changed or deleted beside it since.
        late = {rule_id for rule_id in made if chance.random() < 0.2}
        gone = {"g1": compiled("g1", "**", 9), "g2": compiled("g2", "a:*", 9)}
        old = {rule_id: compiled(rule_id, "**", 5) for rule_id in late if chance.random() < 0.5}
        index = RuleIndex([*(made[each] for each in made if each not in late), *old.values(), *gone.values()])
        table = RuleTable(version=1, index=index)
        table = table.with_changes(2, {**{each: made[each] for each in late}, **dict.fromkeys(gone)})
        whole = RuleIndex(made.values())
        for _ in range(100):
            name = ":".join(chance.choices(SEGMENTS, k=chance.randint(1, 5)))
            expected = naive(rules, name)
            assert [each.rule.rule_id for each in table.candidates(name)] == expected, name
            assert [each.rule.rule_id for each in whole.candidates(name)] == expected, name
            compared += 1
    assert compared == 2_000  # 10,000 with all seeds


@pytest.mark.parametrize("seed", range(3))
async def test_each_event_reaches_each_target_of_each_rule_exactly_once_and_in_order(open_table, seed: int) -> None:
    chance = random.Random(seed)
    async with open_table() as t:
        agents = [await t.agent(f"agent{n}") for n in range(3)]
        places = [*(f"agent:{agent}" for agent in agents), "log:a", "log:b", "log:c"]
        rules: list[tuple[str, str, int, Any]] = []
        for n in range(15):
            chosen = chance.sample(places, k=chance.randint(1, 4))
            target: Any = chosen if chance.random() < 0.6 else {"round_robin": chosen}
            pattern = ":".join(["in", *chance.choices(["a", "b", "*", "**", "a*"], k=chance.randint(1, 2))])
            rules.append((f"r{n:03}", pattern, chance.randint(1, 4), target))

        def fill(tx: Tx) -> None:
            for rule_id, pattern, priority, target in rules:
                draft = RuleDraft(source_pattern=pattern, target=target, priority=priority, rule_id=rule_id)
                t.router.add_rule(tx, t.ctx, draft)

        await t.journal.commit(fill)
        names = [":".join(["in", *chance.choices(["a", "b", "ab"], k=chance.randint(1, 3))]) for _ in range(60)]

        def emit(tx: Tx) -> list[int]:
            return [t.journal.record(tx, name, {"n": n}, t.ctx).event_id for n, name in enumerate(names)]

        ids = await t.journal.commit(emit)
        await t.pump()

        turns: Counter[str] = Counter()
        expected: list[tuple[int, str, str]] = []
        served: Counter[tuple[str, str]] = Counter()
        by_id = {rule_id: target for rule_id, _, _, target in rules}
        for event_id, name in zip(ids, names, strict=True):
            for rule_id in naive([(rule_id, pattern, priority) for rule_id, pattern, priority, _ in rules], name):
                target = by_id[rule_id]
                if isinstance(target, list):
                    expected += [(event_id, rule_id, place) for place in target]
                    continue
                every = target["round_robin"]
                place = every[turns[rule_id] % len(every)]
                turns[rule_id] += 1
                served[rule_id, place] += 1
                expected.append((event_id, rule_id, place))
        sql = (
            "SELECT json_extract(data, '$.event_id'), json_extract(data, '$.rule_id'), json_extract(data, '$.target') "
            "FROM event WHERE name = 'routing:delivered' ORDER BY event_id"
        )
        assert t.rows(sql) == expected
        assert t.rows("SELECT COUNT(*) FROM turn") == [(sum(place.startswith("agent:") for *_, place in expected),)]
        for rule_id in turns:  # fair: nobody is ahead of another by more than one
            counts = [served[rule_id, place] for place in by_id[rule_id]["round_robin"]]
            assert max(counts) - min(counts) <= 1
        made = Counter(rule_id for _, rule_id, _ in expected)
        assert (
            dict(t.rows("SELECT rule_id, SUM(deliveries) FROM rule_stat GROUP BY rule_id HAVING SUM(deliveries) > 0"))
            == made
        )


@pytest.mark.parametrize("seed", range(3))
async def test_a_join_uses_every_event_once_in_whatever_order_they_come(open_table, seed: int) -> None:
    chance = random.Random(seed)
    async with open_table() as t:
        parts = ["p:a", "p:b", "p:c"]
        await t.rule("p:*", "all:there", join={"all_of": parts, "by": "{{data.k}}"})
        arrivals = [(chance.choice(parts), chance.randint(1, 4)) for _ in range(150)]

        def emit(tx: Tx) -> None:
            for n, (name, key) in enumerate(arrivals):
                t.journal.record(tx, name, {"k": key, "n": n}, fresh_context(OPERATOR))

        await t.journal.commit(emit)
        await t.pump()
        made = await t.data("all:there")
        came = Counter(arrivals)
        for key in range(1, 5):
            collected = [each["parts"] for each in made if each["key"] == str(key)]
            assert len(collected) == min(came[part, key] for part in parts)
            for part in parts:  # the oldest first, none twice
                in_order = [n for n, arrival in enumerate(arrivals) if arrival == (part, key)]
                assert [each[part]["n"] for each in collected] == in_order[: len(collected)]
        used = sum(len(each["parts"]) for each in made)
        assert t.rows("SELECT COUNT(*) FROM join_part") == [(len(arrivals) - used,)]
