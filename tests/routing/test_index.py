from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.ids import RuleId
from ksi_mcp.routing.index import MEMO_NAMES, RuleIndex, RuleTable, find_cycle
from ksi_mcp.routing.rules import CompiledRule, Rule, compile_rule
from ksi_mcp.routing.targets import stored_targets


def rule(rule_id: str, pattern: str, target: str = "x:y", **fields: Any) -> CompiledRule:
    defaults: dict[str, Any] = {
        "source_agent": None, "condition": None, "mapping": None, "priority": 100, "scope": "global",
        "orchestration_id": None, "enabled": True, "created_by": "operator", "version": 1, "created_at_ms": 0,
        "expires_at_ms": None, "metadata": {},
    }  # fmt: skip
    return compile_rule(
        Rule(rule_id=RuleId(rule_id), source_pattern=pattern, target=stored_targets(target), **{**defaults, **fields})
    )


def ids(found: tuple[CompiledRule, ...]) -> list[str]:
    return [each.rule.rule_id for each in found]


def naive(rules: list[CompiledRule], name: str) -> list[str]:
    heard = [each for each in rules if each.pattern.matches(name)]
    return [each.rule.rule_id for each in sorted(heard, key=lambda each: (-each.rule.priority, each.rule.rule_id))]


SEGMENTS = ["a", "b", "ab", "routing", "task"]
PATTERN_SEGMENTS = [*SEGMENTS, "*", "**", "a*", "*b", "*out*"]


def test_the_index_finds_what_a_scan_finds() -> None:
    chance = random.Random(7)
    compared = 0
    for _ in range(40):
        rules = [
            rule(
                f"r{n}",
                ":".join(chance.choices(PATTERN_SEGMENTS, k=chance.randint(1, 4))),
                priority=chance.choice([1, 2]),
            )
            for n in range(chance.randint(0, 60))
        ]
        index = RuleIndex(rules)
        for _ in range(100):
            name = ":".join(chance.choices(SEGMENTS, k=chance.randint(1, 5)))
            assert ids(index.candidates(name)) == naive(rules, name)
            compared += 1
    assert compared == 4_000


pattern_texts = st.lists(st.sampled_from(PATTERN_SEGMENTS), min_size=1, max_size=5).map(":".join)
names = st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=5).map(":".join)


@given(st.lists(pattern_texts, max_size=12), st.lists(names, min_size=1, max_size=6), st.data())
def test_a_table_with_changes_beside_its_index_is_the_changed_table(
    patterns: list[str], events: list[str], data: st.DataObject
) -> None:
    rules = {f"r{n}": rule(f"r{n}", pattern) for n, pattern in enumerate(patterns)}
    table = RuleTable(version=1, index=RuleIndex(rules.values()))
    after: dict[str, CompiledRule | None] = dict(rules)
    for version in range(2, 5):
        rule_id = data.draw(st.sampled_from(["r0", "r1", "new"]))
        change = data.draw(st.none() | pattern_texts)
        changed = {rule_id: None if change is None else rule(rule_id, change)}
        table = table.with_changes(version, changed)
        after.update(changed)
    living = [each for each in after.values() if each is not None]
    for name in events:
        assert ids(table.candidates(name)) == naive(living, name)


def test_many_changes_make_a_new_index() -> None:
    table = RuleTable().with_changes(1, {f"r{n}": rule(f"r{n}", "a:*") for n in range(1_000)})
    assert not table.changed
    assert len(table.candidates("a:b")) == 1_000


def test_made_up_names_do_not_fill_the_memory() -> None:
    index = RuleIndex([rule("r", "**")])
    for n in range(MEMO_NAMES + 10):
        index.candidates(f"made:up{n}")
    assert len(index._memo) <= MEMO_NAMES


def test_a_pattern_full_of_wild_segments_is_walked_without_going_back() -> None:
    index = RuleIndex([rule("r", ":".join(["**", "a"] * 33))])
    assert ids(index.candidates(":".join("a" * 100))) == ["r"]
    assert ids(index.candidates(":".join("b" * 100))) == []


def table_of(*rules: CompiledRule) -> RuleTable:
    return RuleTable(version=1, index=RuleIndex(rules))


def test_a_rule_that_feeds_itself_is_found() -> None:
    links = find_cycle(table_of(), rule("r", "a:*", "a:b"), now_ms=0)
    assert links is not None
    assert [link.name for link in links] == ["a:b"]


def test_a_circle_of_rules_is_found_with_its_path() -> None:
    table = table_of(rule("r1", "b:**", "c:done"), rule("r2", "c:*", "a:again"))
    links = find_cycle(table, rule("new", "a:*", "b:start"), now_ms=0)
    assert links is not None
    assert [(link.rule_id, link.name) for link in links] == [("new", "b:start"), ("r1", "c:done"), ("r2", "a:again")]


def test_what_cannot_close_a_circle_does_not() -> None:
    new = rule("new", "a:*", "b:start")
    back = ("back", "b:*", "a:again")
    assert find_cycle(table_of(rule(*back)), new, now_ms=0) is not None
    assert find_cycle(table_of(rule(*back, enabled=False)), new, now_ms=0) is None
    assert find_cycle(table_of(rule(*back, expires_at_ms=5)), new, now_ms=5) is None
    assert find_cycle(table_of(rule("back", "b:*", "agent:a_1")), new, now_ms=0) is None
    assert find_cycle(table_of(rule(*back)), rule("new", "a:*", "agent:a_1"), now_ms=0) is None
    mine = rule("new", "a:*", "b:start", source_agent="a_1")
    assert find_cycle(table_of(rule(*back, source_agent="a_2")), mine, now_ms=0) is None
    assert find_cycle(table_of(rule(*back, source_agent="a_1")), mine, now_ms=0) is not None
    run = rule("new", "a:*", "b:start", scope="orchestration:o_1")
    assert find_cycle(table_of(rule(*back, scope="orchestration:o_2")), run, now_ms=0) is None


def test_the_rule_that_is_changed_does_not_stand_in_its_own_way() -> None:
    table = table_of(rule("r", "b:*", "a:again"))
    assert find_cycle(table, rule("r", "a:*", "b:start"), now_ms=0) is None


def test_a_stored_rule_that_cannot_be_read_is_kept_but_broken() -> None:
    broken = rule("r", "a:*", condition="data.x +")
    assert broken.broken is not None
    assert ids(table_of(broken).candidates("a:b")) == ["r"]
