"""What strangers tried with bundles and promotions: claims of runs, names that meet, guards passed by silence."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from ksi_mcp import yamlio
from ksi_mcp.compositions.manifest import Bundle, Stamp, make_bundle, to_bytes
from ksi_mcp.compositions.model import parse_composition
from ksi_mcp.compositions.runrows import RunRow
from ksi_mcp.errors import Invalid, KsiError

DESK = {
    "name": "desk", "type": "orchestration", "version": "1.0.0",
    "agents": {"clerk": {"prompt": "You guess.", "capabilities": ["base"]}},
    "orchestration_logic": {"strategy": "Ask."},
}  # fmt: skip


def bundle_of(*documents: dict[str, Any], runs: tuple[RunRow, ...] = ()) -> tuple[str, Bundle]:
    members = [("composition", parse_composition(each, what="it"), yamlio.dump(each)) for each in documents]
    stamp, names = Stamp(at="2026-01-01", by="eve"), tuple(each["name"] for each in documents)
    made = make_bundle(stamp=stamp, names=names, members=members, runs=runs)
    return base64.b64encode(to_bytes(made)).decode(), made


def component(name: str, content: str) -> dict[str, Any]:
    return {"name": name, "type": "component", "content": content}


async def complete(house: Any, pattern: str, count: int, **said: Any) -> None:
    for number in range(count):
        run = (await house.call("orchestration_start", pattern=pattern))["orchestration"]
        given = {key: value[number % len(value)] if isinstance(value, list) else value for key, value in said.items()}
        await house.call("orchestration_complete", orchestration=run, **given)


async def test_a_claim_of_a_run_that_is_here_keeps_it_from_nothing(open_house) -> None:
    async with open_house() as house:
        await house.call("composition_create", document=DESK)
        run = (await house.call("orchestration_start", pattern="desk"))["orchestration"]
        claim = RunRow(
            run_id=run, name="tiny", hash="a" * 64, version="1", outcome="ok", success=True, score=1.0, metrics=None,
            usd_micros=0, tokens=0, turns=0, duration_s=0, ended_at_ms=1,
        )  # fmt: skip
        packed, _ = bundle_of(component("tiny", "x"), runs=(claim,))
        await house.call("composition_import", bundle=packed, allow=True)
        ended = await house.call("orchestration_complete", orchestration=run, outcome="success", score=0.5)
        assert ended["state"] == "completed"
        assert house.rows("SELECT name, score, origin FROM composition_run WHERE run_id = ?", run) == [
            ("desk", 0.5, None)
        ]


async def test_a_prefix_never_makes_one_of_two(open_house) -> None:
    async with open_house() as house:
        await house.call("composition_create", document=component("x", "mine"))
        packed, made = bundle_of(component("x", "theirs"), component("acme_x", "another"))
        await house.call("composition_import", bundle=packed)
        with pytest.raises(Invalid, match="would be named .acme_x."):
            await house.call("composition_import", bundle_id=made.id, allow=True, prefix="acme_")
        assert house.rows("SELECT name FROM composition WHERE name LIKE '%acme%'") == []
        placed = await house.call("composition_import", bundle_id=made.id, allow=True, prefix="their_")
        assert "their_x" in placed["placed"]


async def test_a_fork_that_does_not_say_how_it_went_takes_no_place(open_house) -> None:
    async with open_house() as house:
        await house.call("composition_create", document=DESK)
        changes = {"agents.clerk.prompt": "You hurry."}
        await house.call("composition_fork", parent="desk", name="quick", reason="fewer steps", modifications=changes)
        await complete(house, "desk", 12, outcome="success", metrics=[{"steps": 9}, {"steps": 10}])
        await complete(house, "quick", 12, outcome="inconclusive", metrics=[{"steps": 1}, {"steps": 2}])
        with pytest.raises(KsiError, match="say whether they succeeded"):
            await house.call("composition_promote", name="quick", metric="metrics.steps", better="lower")
        assert (await house.call("composition_get", name="desk"))["version"] == "1.0.0"
