from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from ksi_mcp.cli.demonstration.facts import missing
from ksi_mcp.cli.demonstration.report import PIPED_WIDTH
from ksi_mcp.yamlio import safe_load

ROOT = Path(__file__).parent.parent.parent
PATTERN_RULES = {
    ("tournament:round", "operator", "contestant_direct", 1),
    ("tournament:round", "operator", "contestant_inventive", 1),
    ("tournament:round", "operator", "contestant_rigorous", 1),
    ("tournament:match", "operator", "judge", 4),
    ("tournament:result", "judge", "analyst", 4),
}


async def begin(*arguments: str, **environ: str) -> asyncio.subprocess.Process:
    """Start the command as a process, with nothing of the tester's own settings."""
    passed = {key: value for key, value in os.environ.items() if not key.startswith(("KSI_", "ANTHROPIC_"))}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ksi_mcp", "demo", *arguments,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**passed, "PYTHONPATH": str(ROOT), **environ},
    )  # fmt: skip


async def demo(*arguments: str, **environ: str) -> tuple[int, str, str]:
    """Run the command to its end: its exit code and what it wrote."""
    process = await begin(*arguments, **environ)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def killed_at(step: str, **environ: str) -> None:
    """Run the command until it tells of that step, and kill it there."""
    process = await begin(**environ)
    assert process.stdout is not None
    async for line in process.stdout:
        if step in line.decode():
            process.kill()
    await process.wait()


def check(facts: dict[str, Any], home: Path, number: int) -> None:
    assert facts["missing"] == []
    assert facts["left_running"] == []
    assert facts["data_folder"] == str(home)
    agents = {agent["name"]: agent for agent in facts["agents"]}
    assert {name: agent["statuses"] for name, agent in agents.items()} == {
        "contestant_direct": {"done": 2},
        "contestant_inventive": {"done": 2},
        "contestant_rigorous": {"done": 1},
        "judge": {"done": 5},
        "analyst": {"done": 4},
        "bargain": {"failed": 1},
        "critic": {"done": 1},
    }
    assert {name for name, agent in agents.items() if agent["attempts"] > agent["turns"]} == {"contestant_inventive"}
    assert [name for name, agent in agents.items() if agent["tokens"] == 0] == ["bargain"]

    by_pattern = [route for route in facts["routes"] if route["made_by"] == "adaptive_tournament"]
    assert {(route["event"], route["from"], route["to"], route["times"]) for route in by_pattern} == PATTERN_RULES
    (by_critic,) = [route for route in facts["routes"] if route not in by_pattern]
    assert (by_critic["event"], by_critic["from"], by_critic["to"]) == ("review:risk", "critic", "judge")
    assert (by_critic["made_by"], by_critic["rule"]) == ("critic", facts["rules_by_agents"][0]["rule_id"])

    assert {(each["from"], each["to"]): each["times"] for each in facts["messages"]} == {
        ("operator", name): 1 for name in ("bargain", "critic", "contestant_direct", "contestant_inventive")
    }

    calls, budget = facts["calls"], facts["budget"]
    assert (calls["made"], calls["answered"], calls["unscripted"]) == (26, 25, 0)
    assert calls["most_at_once"] >= 2
    assert calls["refused"] == [{"agent": "contestant_inventive", "status": 529, "turn": 1}]
    assert [(retry["agent"], retry["kind"]) for retry in facts["retries"]] == [("contestant_inventive", "overload")]
    assert (
        0 < budget["spent_usd"] == round(sum(agent["cost_usd"] for agent in agents.values()), 6) < budget["limit_usd"]
    )
    assert budget["spent_tokens"] == sum(agent["tokens"] for agent in agents.values())
    assert (budget["spent_turns"], budget["reserved_usd"]) == (15, 0)
    (denied,) = facts["denied"]
    assert (denied["agent_name"], denied["error_class"], denied["cost_usd"]) == ("bargain", "budget", 0)
    assert "left, the call could cost" in denied["reason"]

    assert facts["table"] == {"contestant_rigorous": 3, "contestant_inventive": 1}
    assert (facts["decision"]["outcome"], facts["decision"]["score"]) == ("rigorous", 0.75)
    assert facts["fork"]["name"] == f"adaptive_tournament_demo_{number}"
    assert facts["fork"]["parent"] == "adaptive_tournament@1.0.0"
    assert (home / "compositions" / "orchestrations" / f"{facts['fork']['name']}.yaml").is_file()
    assert (facts["outcome"]["state"], facts["outcome"]["score"]) == ("completed", 0.75)
    assert facts["outcome"]["summary"].startswith("An idempotency key")


@pytest.mark.timeout(180)
async def test_the_demonstration_keeps_its_promises_and_works_again_on_its_folder_even_after_a_kill(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    code, out, err = await demo("--json", "--home", str(home))
    assert (code, err) == (0, "")
    first = json.loads(out)
    check(first, home, 1)
    assert first["seconds"] < 20
    await killed_at("tournament:round goes to 3 agents", KSI_HOME=str(home))

    # The demonstration looks at itself: its code is 0 only if all of it happened, this time too.
    code, out, err = await demo(KSI_HOME=str(home), PYTHONIOENCODING="utf-8")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    *lines, folder = out.splitlines()
    assert max(map(len, lines)) <= PIPED_WIDTH
    assert folder == f"  Data folder: {home}"
    assert "All of it happened" in lines[-1]
    (file,) = (home / "compositions").rglob("adaptive_tournament_decisions.yaml")
    decisions = [each["id"] for each in safe_load(file.read_text("utf-8"), what=file.name)]
    assert len(decisions) == 2
    assert decisions[0] == first["decision"]["decision_id"]

    broken = {**first, "retries": [], "fork": {}, "left_running": ["worker 1"]}
    assert missing(broken) == ["a retry that succeeds", "a fork with its lineage", "no process left"]


def test_a_folder_that_somebody_works_with_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("budget: {usd: 5}\n")
    code, out, err = asyncio.run(demo("--json", "--home", str(tmp_path)))
    assert (code, json.loads(out)["error"]["code"]) == (3, "refused")
    assert "in use" in err
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "budget: {usd: 5}\n"


async def test_two_demonstrations_in_one_folder_do_not_mix(tmp_path: Path) -> None:
    with FileLock(tmp_path / "demo.lock"):
        code, _, err = await demo("--home", str(tmp_path))
    assert code == 4
    assert "under way" in err
