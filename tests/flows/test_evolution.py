"""A pattern, its better fork and one that is no better: thirty runs each, and only evidence moves the library."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mcp import Client
from mcp.types import TextContent

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home, ScriptedConfig
from ksi_mcp.transports.server import build_server
from ksi_mcp.yamlio import dump, safe_load

RUNS = 30
GUESSED, WEIGHED = 15, 28
"""Tasks that each prompt gets right; the louder guess gets as many right as the quiet one."""
PATTERN = {
    "name": "sort_desk",
    "type": "orchestration",
    "version": "1.2.0",
    "description": "A case is sorted by one agent.",
    "agents": {"sorter": {"prompt": "You guess.", "capabilities": ["base"]}},
    "orchestration_logic": {"strategy": "SEND the case to sorter; COMPLETE with what came of it."},
    "learnings": [{"insight": "Cases come in any order.", "confidence": 0.5}],
    "house_rule": {"kept": True},
}
NUMBERED = [{"match": {"system": f"/{system}/", "prompt": f"/^case {n}$/"}, "reply": "right"}
            for system, right in (("You guess", GUESSED), ("You weigh", WEIGHED)) for n in range(right)]  # fmt: skip


class Desk:
    def __init__(self, client: Client, home: Path) -> None:
        self._client = client
        self.home = home

    async def call(self, tool: str, /, **args: Any) -> dict[str, Any]:
        text, is_error = await self._try(tool, **args)
        assert not is_error, f"{tool}: {text}"
        return dict(json.loads(text))

    async def refused(self, tool: str, /, **args: Any) -> str:
        text, is_error = await self._try(tool, **args)
        assert is_error, text
        return text

    async def _try(self, tool: str, /, **args: Any) -> tuple[str, bool]:
        result = await self._client.call_tool(tool, args)
        text = result.content[0]
        assert isinstance(text, TextContent)
        return text.text, bool(result.is_error)

    async def runs(self, pattern: str) -> list[str]:
        """Thirty runs over the very same cases; their ids, in the order of the cases."""
        ids = []
        for n in range(RUNS):
            started = await self.call("orchestration_start", pattern=pattern)
            (agent,) = started["agents"]
            turn = await self.call("agent_send", agent=agent["agent"], message=f"case {n}", wait_s=20)
            right = turn["text"] == "right"
            await self.call(
                "orchestration_complete",
                orchestration=started["orchestration"],
                outcome="success" if right else "failure",
                score=(0.8 if right else 0.3) + n % 3 / 100,
                metrics={"right": right, "cases": 1},
            )
            ids.append(started["orchestration"])
        return ids

    def document(self, name: str) -> dict[str, Any]:
        (file,) = (self.home / "compositions").rglob(f"{name}.yaml")
        return dict(safe_load(file.read_text("utf-8"), what=name))


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Desk]:
    (root / "script.yaml").write_text(dump({"replies": NUMBERED, "default": {"reply": "wrong"}}), "utf-8")
    config = Config(provider="scripted", scripted=ScriptedConfig(script="script.yaml"))
    async with (
        App(Home(root=root), AppOptions(worker="inside"), config=config) as app,
        Client(build_server(app, tools="full")) as client,
    ):
        yield Desk(client, root)


async def test_a_fork_takes_its_parents_place_behind_evidence_and_no_sooner(tmp_path: Path) -> None:
    async with opened(tmp_path) as desk:
        await desk.call("composition_create", document=PATTERN)
        better = {"agents.sorter.prompt": "You weigh what speaks for each side."}
        for name, changes in (("sort_weighing", better), ("sort_loud", {"agents.sorter.prompt": "You guess LOUDLY."})):
            reason = "more cases sorted right"
            await desk.call("composition_fork", parent="sort_desk", name=name, reason=reason, modifications=changes)
        before = desk.document("sort_desk")

        said = await desk.refused("composition_promote", name="sort_weighing")
        assert "not enough runs: 0 of 10 for a, 0 of 10 for b" in said

        ids = {name: await desk.runs(name) for name in ("sort_desk", "sort_weighing", "sort_loud")}

        # What the runs come to is computed from them.
        shown = await desk.call("composition_compare", a="sort_desk", b="sort_weighing", metric="success")
        assert (shown["a"]["n"], shown["a"]["mean"]) == (RUNS, 0.5)
        assert (shown["b"]["n"], shown["b"]["mean"]) == (RUNS, round(WEIGHED / RUNS, 6))
        assert shown["verdict"] == "b is better"
        low, high = shown["interval"]
        assert 0 < low < shown["difference"] < high < 1
        shown = await desk.call("composition_compare", a="sort_desk", b="sort_weighing")
        assert (shown["metric"], shown["verdict"]) == ("score", "b is better")
        assert shown["a"]["reported_by"] == shown["b"]["reported_by"] == {"operator": RUNS}
        shown = await desk.call("composition_compare", a="sort_desk", b="sort_weighing", metric="metrics.right")
        assert (shown["b"]["n"], shown["verdict"]) == (RUNS, "b is better")
        shown = await desk.call("composition_compare", a="sort_desk", b="sort_loud")
        assert (shown["difference"], shown["verdict"]) == (0, "no difference shown")

        seen = (await desk.call("composition_get", name="sort_weighing"))["measured"]
        assert (seen["performance"]["runs"], seen["performance"]["success_rate"]) == (RUNS, round(WEIGHED / RUNS, 6))
        low, high = seen["performance"]["success_rate_interval"]
        assert low < WEIGHED / RUNS < high
        assert [each["metric"] for each in seen["improvements_over_parent"]] == ["score", "success"]
        assert seen["improvements_over_parent"][1]["interval"][0] > 0
        assert "performance" not in desk.document("sort_weighing")

        # No better is not promoted, and nothing was touched by the asking.
        said = await desk.refused("composition_promote", name="sort_loud")
        assert "no difference shown, by score" in said
        said = await desk.refused("composition_promote", name="sort_desk")
        assert "was not forked from anything" in said
        said = await desk.refused("composition_promote", name="sort_weighing", over="consensus")
        assert "it descends from sort_desk" in said
        tried = await desk.call("composition_promote", name="sort_weighing", dry_run=True)
        assert tried["version"] == "1.3.0"
        assert desk.document("sort_desk") == before

        done = await desk.call("composition_promote", name="sort_weighing", metric="success", reason="it weighs")
        assert (done["name"], done["version"], done["replaces"]) == ("sort_desk", "1.3.0", "sort_desk@1.2.0")
        after = desk.document("sort_desk")
        assert after["agents"]["sorter"]["prompt"] == better["agents.sorter.prompt"]
        assert (after["name"], after["version"], after["house_rule"]) == ("sort_desk", "1.3.0", {"kept": True})
        assert after["learnings"] == PATTERN["learnings"]
        lineage = after["lineage"]
        assert (lineage["promoted_from"], lineage["replaces"]) == ("sort_weighing@1.0.0", "sort_desk@1.2.0")
        assert (lineage["promoted_by"], lineage["promotion_reason"]) == ("operator", "it weighs")
        (evidence,) = lineage["improvements"]
        assert (evidence["metric"], evidence["before"]["n"], evidence["after"]["n"]) == ("success", RUNS, RUNS)
        assert evidence["interval"] == done["evidence"]["interval"]
        assert sorted(evidence["after"]["run_ids"]) == sorted(ids["sort_weighing"])
        (told,) = (await desk.call("event_query", names=["composition:promoted"]))["events"]
        assert (told["data"]["promoted_from"], told["data"]["evidence"]) == ("sort_weighing@1.0.0", evidence)

        # The version before stays what it was, and what is started now is the new one.
        old = await desk.call("composition_get", name=f"sort_desk@{lineage['replaces_hash'][:12]}")
        assert old["document"]["agents"]["sorter"]["prompt"] == "You guess."
        started = await desk.call("orchestration_start", pattern="sort_desk")
        turn = await desk.call("agent_send", agent=started["agents"][0]["agent"], message="case 20", wait_s=20)
        assert turn["text"] == "right"
        said = await desk.refused("composition_promote", name="sort_weighing")
        assert "not enough runs: 0 of 10 for a" in said  # of that version there are none yet


async def test_a_learning_cites_runs_that_there_are(tmp_path: Path) -> None:
    async with opened(tmp_path) as desk:
        await desk.call("composition_create", document=PATTERN)
        await desk.call("composition_fork", parent="sort_desk", name="sort_again", reason="to see")
        ids = await desk.runs("sort_desk")
        learning = {"insight": "Even cases are easier.", "confidence": 0.7}
        said = await desk.refused("composition_add_learning", name="sort_desk", **learning, evidence=["o_0000000000"])
        assert "no ended run 'o_0000000000'" in said
        open_run = (await desk.call("orchestration_start", pattern="sort_desk"))["orchestration"]
        said = await desk.refused("composition_add_learning", name="sort_desk", **learning, evidence=[ids[0], open_run])
        assert f"no ended run {open_run!r}" in said
        assert desk.document("sort_desk")["learnings"] == PATTERN["learnings"]

        # The fork may cite what its parent went through.
        for name in ("sort_desk", "sort_again"):
            await desk.call("composition_add_learning", name=name, **learning, evidence=ids[:3])
            kept, version = desk.document(name), PATTERN["version"] if name == "sort_desk" else "1.0.0"
            assert (
                kept["learnings"][-1].items() >= {**learning, "evidence": ids[:3], "discovered_by": "operator"}.items()
            )
            assert (kept["version"], kept["house_rule"]) == (version, {"kept": True})
        hashes = [(await desk.call("composition_get", name=name))["hash"] for name in ("sort_desk", "sort_again")]
        started = await desk.call("orchestration_start", pattern="sort_desk")
        assert started["pattern"] == f"sort_desk@{hashes[0]}"  # a learning makes no new version
