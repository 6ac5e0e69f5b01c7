"""Figures of rules and dead letters go too, when they are old or too many."""

from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.events import retention

DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PAUSE_S", 0)
    monkeypatch.setattr(retention, "UNIT_ROWS", 2)


async def later(house: Any, days: float) -> None:
    house.gate.ahead_ms += int(days * DAY_MS)
    await house.app.retention.sweep()


async def fail(house: Any, count: int) -> None:
    for _ in range(count):
        await house.call("event_emit", event="task:new", data={})
    await house.until(lambda: house.rows("SELECT * FROM outbox") == [])


def letters(house: Any) -> list[int]:
    return [row[0] for row in house.rows("SELECT dead_id FROM dead_letter ORDER BY 1")]


async def test_figures_of_rules_go_when_they_are_old(open_house) -> None:
    async with open_house(retention={"rule_stats_days": 10}) as house:
        for i in range(5):
            await house.call("routing_add_rule", source_pattern="task:*", target="log:seen", priority=i)
        await fail(house, 1)
        assert len(house.rows("SELECT * FROM rule_stat")) == 5
        await later(house, 9)
        assert len(house.rows("SELECT * FROM rule_stat")) == 5
        await fail(house, 1)
        await later(house, 2)
        assert len(house.rows("SELECT * FROM rule_stat")) == 5  # the newer five
        await later(house, 9)
        assert house.rows("SELECT * FROM rule_stat") == []


async def test_open_letters_go_when_they_are_old_and_redriven_ones_earlier(open_house) -> None:
    async with open_house(retention={"dead_letters_days": 30, "redriven_days": 5}) as house:
        rule = await house.call("routing_add_rule", source_pattern="task:*", target="log:seen", mapping="{{data.no}}")
        await fail(house, 7)
        await house.call("routing_modify_rule", rule_id=rule["rule_id"], updates={"mapping": None})
        first, second, third, *_ = letters(house)
        done = await house.call("routing_redrive", ids=[first, second, third])
        assert done["ok"] == 3
        await later(house, 4)
        assert len(letters(house)) == 7
        await later(house, 2)
        assert letters(house) == [4, 5, 6, 7]
        await later(house, 25)
        assert letters(house) == []


async def test_the_oldest_of_too_many_letters_go_but_none_that_are_fresh(open_house) -> None:
    async with open_house(retention={"dead_letters": 2}) as house:
        await house.call("routing_add_rule", source_pattern="task:*", target="log:seen", mapping="{{data.no}}")
        await fail(house, 5)
        await later(house, 0)
        assert len(letters(house)) == 5
        await later(house, 0.1)
        assert letters(house) == [4, 5]


async def test_letters_without_limit_of_age_stay(open_house) -> None:
    async with open_house(retention={"dead_letters_days": None}) as house:
        await house.call("routing_add_rule", source_pattern="task:*", target="log:seen", mapping="{{data.no}}")
        await fail(house, 1)
        await later(house, 10_000)
        assert len(letters(house)) == 1
