"""How a decision turned out is said once, by those who may, and stands in the file as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ksi_mcp import yamlio
from ksi_mcp.errors import Conflict, Invalid, KsiError, NotFound, Refused
from ksi_mcp.permissions import agent_actor, fresh_context

ABLE = ("base", "decisions", "spawn_agents")


async def act(house: Any, actor: str, tool: str, /, **args: Any) -> dict[str, Any]:
    return dict((await house.app.toolbox.call(fresh_context(agent_actor(actor)), tool, args)).data)


def log_of(house: Any, pattern: str = "p") -> Path:
    return Path(house.home.root) / "compositions" / "decisions" / f"{pattern}_decisions.yaml"


def entries(house: Any) -> list[dict[str, Any]]:
    return list(yamlio.safe_load(log_of(house).read_text("utf-8"), what="the log"))


async def test_who_decided_who_is_above_and_the_operator_may_say_how_it_turned_out(open_house) -> None:
    async with open_house() as house:
        parent, stranger = await house.spawn("parent", ABLE), await house.spawn("stranger", ABLE)
        made = await act(house, parent, "agent_spawn", name="kid", prompt="x", capabilities=list(ABLE))
        kid = made["agent"]
        given = [
            (await act(house, kid, "composition_track_decision", pattern="p", decision=f"no. {n}"))["decision_id"]
            for n in range(3)
        ]
        of_parent = (await act(house, parent, "composition_track_decision", pattern="p", decision="x"))["decision_id"]
        for actor, decision in ((stranger, given[0]), (kid, of_parent)):
            with pytest.raises(Refused, match="not you nor below you"):
                await act(house, actor, "decision_resolve", decision_id=decision, outcome="success")
        assert house.events("decision:resolved") == []
        assert house.rows("SELECT COUNT(*) FROM decision WHERE outcome = 'pending'") == [(4,)]

        await act(house, kid, "decision_resolve", decision_id=given[0], outcome="success", score="0.9")
        await act(house, parent, "decision_resolve", decision_id=given[1], outcome="failure")
        done = await house.call("decision_resolve", id=given[2], outcome="mixed", score=0.5)
        assert (done["outcome"], done["score"], done["resolved_by"], done["agent"]) == ("mixed", 0.5, "operator", kid)
        told = [(fact["outcome"], fact["by"]) for fact in house.events("decision:resolved")]
        assert told == [("success", f"agent:{kid}"), ("failure", f"agent:{parent}"), ("mixed", "operator")]
        said = [entry for entry in entries(house) if "resolves" in entry]
        assert [(each["resolves"], each["outcome"], each.get("score")) for each in said] == [
            (given[0], "success", 0.9), (given[1], "failure", None), (given[2], "mixed", 0.5)
        ]  # fmt: skip

        with pytest.raises(Conflict, match="was resolved as 'success' by agent"):
            await house.call("decision_resolve", decision_id=given[0], outcome="failure")
        assert [entry for entry in entries(house) if "resolves" in entry] == said


@pytest.mark.parametrize(
    "wrong",
    [
        {"outcome": "pending"}, {"outcome": " "}, {"outcome": "x" * 1_000_000}, {"outcome": "ok", "score": "NaN"},
        {"outcome": "ok", "score": 1e308}, {"outcome": "ok", "score": "inf"}, {"outcome": "\ud800"},
    ],
)  # fmt: skip
async def test_what_cannot_be_stored_resolves_nothing(open_house, wrong: dict[str, Any]) -> None:
    async with open_house() as house:
        decided = (await house.call("composition_track_decision", pattern="p", decision="x"))["decision_id"]
        before = log_of(house).read_bytes()
        with pytest.raises(KsiError) as refused:
            await house.call("decision_resolve", decision_id=decided, **wrong)
        assert len(refused.value.text()) < 1_000
        with pytest.raises(NotFound, match="unknown decision"):
            await house.call("decision_resolve", decision_id="d_" + "0" * 10_000, outcome="ok")
        assert log_of(house).read_bytes() == before
        assert house.rows("SELECT outcome, resolved_at_ms FROM decision") == [("pending", None)]


async def test_decisions_are_found_by_run_and_by_score(open_house) -> None:
    async with open_house() as house:
        await house.run("o_one")
        for n, score in enumerate((0.2, 0.5, 0.9)):
            more = {"orchestration": "o_one"} if n else {}
            await house.call("composition_track_decision", pattern="p", decision=str(n), score=score, **more)
        found = await house.call("decision_query", orchestration="o_one")
        assert [each["decision"] for each in found["decisions"]] == ["2", "1"]
        found = await house.call("decision_query", min_score=0.5)
        assert [each["decision"] for each in found["decisions"]] == ["2", "1"]
        found = await house.call("decision_query", min_score=0.6, orchestration="o_one")
        assert [each["decision"] for each in found["decisions"]] == ["2"]


async def test_the_file_is_made_again_from_the_database_and_the_database_from_the_file(open_house, tmp_path) -> None:
    async with open_house(root=tmp_path / "one") as house:
        for n in range(3):
            made = await house.call("composition_track_decision", pattern="p", decision=f"no. {n}", confidence=0.5)
        await house.call("decision_resolve", decision_id=made["decision_id"], outcome="success", score=1)
        whole = log_of(house).read_text("utf-8")
        shown = (await house.call("decision_query"))["decisions"]
        log_of(house).unlink()
        assert await house.app.services.decisions.write_missing() == 4
        again = yamlio.safe_load(log_of(house).read_text("utf-8"), what="it")
        assert [entry["decision"] for entry in again[:3]] == ["no. 0", "no. 1", "no. 2"]
        assert again[3] == yamlio.safe_load(whole, what="it")[3]
        # What a crash cut short in the middle of a resolution is taken off and written again.
        lines = log_of(house).read_text("utf-8").splitlines(keepends=True)
        start = next(n for n, line in enumerate(lines) if line.startswith("- resolves"))
        rest = "".join(lines[start:])
        for cut in range(1, len(rest)):
            log_of(house).write_text("".join(lines[:start]) + rest[:cut], "utf-8")
            await house.app.services.decisions.write_missing()
            assert yamlio.safe_load(log_of(house).read_text("utf-8"), what="it") == again
    async with open_house(root=tmp_path / "two") as house:
        log_of(house).parent.mkdir(parents=True)
        log_of(house).write_text(whole, "utf-8")
        done = await house.call("decision_import", pattern="p")
        assert done == {"imported": 3, "known": 0, "resolved": 1}
        found = (await house.call("decision_query"))["decisions"]
        assert [{**each, "resolved_at": None} for each in found] == [{**each, "resolved_at": None} for each in shown]
        assert await house.call("decision_import", pattern="p") == {"imported": 0, "known": 3, "resolved": 0}
        assert log_of(house).read_text("utf-8") == whole  # nothing was lacking
        assert house.events("decision:imported") == [{"pattern": "p", "imported": 3, "resolved": 1}]


async def test_only_the_operator_imports(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("a", ABLE)
        with pytest.raises(Refused, match="operator"):
            await act(house, agent, "decision_import", pattern="p", log="- decision: x\n  agent: operator\n")
        with pytest.raises(NotFound):
            await house.call("decision_import", pattern="nobody")
        for bad in ("42", "- [", "a: 1\nb: [", "!!python/object/apply:os.system [ls]"):
            with pytest.raises(Invalid):
                await house.call("decision_import", pattern="p", log=bad)
        with pytest.raises(KsiError):
            await house.call("decision_import", pattern="../p", log="- decision: x\n")
        assert house.rows("SELECT * FROM decision") == []
