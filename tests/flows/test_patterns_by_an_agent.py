"""A pattern that the base orchestrator carries out itself, and what all patterns together need."""

from __future__ import annotations

from pathlib import Path

from ksi_mcp.compositions.files import builtin_root
from ksi_mcp.tools.catalog import DEFAULT_TOOLS

MEMBERS = ("pragmatist", "sceptic", "strategist")
STARTED = {"text": "consensus", "vars": {"question": "Which database?"}, "orchestrator": "agent"}


async def test_the_base_orchestrator_carries_a_pattern_out_by_itself(perform) -> None:
    async with perform("base_orchestrator", "consensus") as stage:
        started = await stage.start("consensus", **STARTED)
        assert "strategy" not in started  # it is for the agent
        waited = await stage.call("agent_wait", turns=[started["turn"]], timeout_s=20)
        assert [turn["text"] for turn in waited["turns"]] == ["The run is complete."]
        ended = await stage.call("orchestration_status", orchestration=stage.run)

        me = stage.ids["orchestrator"]
        assert (ended["state"], ended["outcome"]) == ("completed", "success")
        assert ended["metrics"] == {"rounds": 2, "asked": 4}
        summaries = await stage.events("consensus:summary", 2)
        passed_on = summaries[0]["arguments"][0]
        assert passed_on in ("sqlite: one file to copy", "postgres: many writers")
        assert sorted(summaries[1]["arguments"]) == sorted([f"sqlite: {passed_on}"] * 2 + ["sqlite: few writers"])
        assert all(argument in ended["summary"] for argument in summaries[1]["arguments"])
        assert ended["summary"].startswith("sqlite: ")

        # Everybody took part, and what the orchestrator did, it did as itself.
        assert await stage.participants() == {
            "pragmatist": 2, "sceptic": 2, "strategist": 3, "moderator": 6, "orchestrator": 1
        }  # fmt: skip
        (turn,) = await stage.history("orchestrator")
        assert turn["tools"][0] == "orchestration_status"
        assert turn["tools"][-1] == "orchestration_complete"
        assert await stage.routes() == {
            **{f"orchestrator -consensus:round-> {name}": 2 for name in MEMBERS},
            **{f"{name} -consensus:position-> moderator": 2 for name in MEMBERS},
        }
        done = await stage.look("event_query", names=["**"], agent=me, orchestration=stage.run, limit=200)
        own = [event["event"] for event in done["events"] if event["source"] == f"agent:{me}"]
        assert set(own) >= {"consensus:round", "decision:tracked", "composition:forked", "orchestration:completed"}
        (kept,) = stage.decisions()
        assert (kept["agent"], kept["decision"], kept["confidence"]) == (me, "consensus_reached", 0.75)
        assert kept["context"] == {"of": stage.run, "arguments": summaries[1]["arguments"]}
        assert kept["orchestration"] == stage.run
        forked = await stage.look("composition_get", name="consensus_in_two")
        assert forked["document"]["variables"]["max_rounds"]["default"] == 2

        # 13 turns of the panel, and the orchestrator's one.
        assert (ended["census"]["ok"], ended["census"]["asked"]) == (14, 14)
        await stage.check_account(ended["budget"], turns=14)


async def test_who_hears_an_event_has_work_as_soon_as_it_is_emitted(perform) -> None:
    async with perform("consensus", whole=False) as stage:
        await stage.start("consensus", text="consensus", vars={"question": "Which database?"})
        await stage.call("event_emit", event="consensus:round", data={"round": 1}, orchestration=stage.run)
        status = await stage.call("orchestration_status", orchestration=stage.run)
        assert status["census"]["pending"] + status.get("undelivered_events", 0) > 0
        waited = await stage.call("agent_wait", agents=[stage.ids[name] for name in MEMBERS], timeout_s=20)
        assert waited["census"]["ok"] == 3


def test_every_pattern_is_played_and_together_they_use_every_listed_tool(tools_of: dict[str, set[str]]) -> None:
    # Each run is held to its own line of the table when it ends, so the table may speak for the runs.
    patterns = {path.stem for path in (builtin_root() / "orchestrations").glob("*.yaml")}
    assert set(tools_of) == patterns | {"base_orchestrator"}
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_patterns_*.py"))
    assert all(f'perform("{name}"' in tests for name in tools_of)
    assert set().union(*tools_of.values()) == set(DEFAULT_TOOLS)
