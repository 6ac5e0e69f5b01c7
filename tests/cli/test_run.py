"""`ksi-mcp run` as a person and as a script meet it: real processes, real terminals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.budgets.prices import UnpricedModel
from ksi_mcp.cli.live.run_asking import is_one
from ksi_mcp.cli.live.run_view import verdict_of

ROOT = Path(__file__).parent.parent.parent
ENV = {
    **{
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ANTHROPIC_", "OPENAI_", "KSI_")) and name not in ("COLUMNS", "LINES", "NO_COLOR")
    },
    "PYTHONPATH": str(ROOT),
}
ASK = {"name": "agent_send", "input": {"agent": "helper", "message": "How many?", "wait_s": 50}}
END = {"name": "orchestration_complete", "input": {"outcome": "success", "score": 0.9, "summary": "It is 42."}}
HELPED = [
    {"match": {"agent": "orchestrator", "round": 1}, "tool_calls": [ASK]},
    {"match": {"agent": "orchestrator", "round": 2}, "tool_calls": [END]},
    {"match": {"agent": "helper"}, "reply": "42, I think."},
]


def house(
    root: Path, replies: list[dict[str, Any]] = HELPED, *, agent: dict[str, Any] | None = None, **more: Any
) -> str:
    """A data folder with the pattern `errand`: an orchestrator that asks one helper."""
    (root / "compositions").mkdir(parents=True)
    config = {"provider": "scripted", "scripted": {"script": "script.yaml"}, "worker": {"idle_s": 0.5}}
    (root / "config.yaml").write_text(json.dumps(config))
    (root / "script.yaml").write_text(json.dumps({"replies": replies, "default": {"reply": "done"}}))
    pattern = {
        "name": "errand",
        "type": "orchestration",
        "version": "1.0.0",
        "description": "One asks, one answers.",
        "agents": {"helper": {"composition": "base_agent", "vars": {"prompt": "You answer."}, **(agent or {})}},
        "orchestration_logic": {"strategy": "Ask the helper, then complete."},
        **more,
    }
    (root / "compositions" / "errand.yaml").write_text(json.dumps(pattern))
    return str(root)


def ksi(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ksi_mcp", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=ENV, stdin=subprocess.DEVNULL, timeout=60, check=False
    )


# ------------------------------------------------------------------------------------------ in a pipe


def test_in_a_pipe_a_line_tells_of_each_event_that_matters_and_the_end_of_all(tmp_path: Path) -> None:
    ended = ksi("run", "errand", "--home", house(tmp_path))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not [character for character in ended.stdout if character < " " and character != "\n"]
    lines = ended.stdout.splitlines()
    assert any(line[10:].split() == ["orchestrator", "spawned", "from", "base_orchestrator"] for line in lines)
    assert any("helper" in line and line.endswith("✓ 42, I think.") for line in lines)
    assert any(line.endswith("run completed: success, score 0.9") for line in lines)
    assert any(line.startswith("✓ success  score 0.9  errand  ") for line in lines)
    assert "  It is 42." in lines


def test_json_is_one_line_at_the_end_and_quiet_is_one_for_people(tmp_path: Path) -> None:
    home = house(tmp_path)
    ended = ksi("run", "errand", "--json", "--home", home)
    (line,) = ended.stdout.splitlines()
    facts = json.loads(line)
    assert (facts["verdict"], facts["exit_code"], facts["score"], facts["summary"]) == ("success", 0, 0.9, "It is 42.")
    assert facts["census"]["pending"] == 0
    assert {agent["name"]: agent.get("said") for agent in facts["agents"]}["helper"] == "42, I think."
    quiet = ksi("run", "errand", "-q", "--home", home)
    (said,) = quiet.stdout.splitlines()
    assert "success, score 0.9" in said


FAILS = {**END, "input": {"outcome": "failure", "summary": "No."}}
PARTLY = {**END, "input": {"outcome": "partial"}}


@pytest.mark.parametrize(
    ("replies", "code", "verdict"),
    [
        ([{"match": {"agent": "orchestrator", "round": 1}, "tool_calls": [FAILS]}], 5, "failed"),
        ([{"match": {"agent": "orchestrator", "round": 1}, "tool_calls": [PARTLY]}], 6, "partial"),
        ([{"match": {"agent": "orchestrator"}, "reply": "I leave it at that."}], 6, "idle"),
        ([{"match": {"agent": "orchestrator"}, "fail": {"kind": "auth", "status": 401}}], 5, "failed"),
    ],
)
def test_the_exit_code_says_how_it_ended(
    tmp_path: Path, replies: list[dict[str, Any]], code: int, verdict: str
) -> None:
    ended = ksi("run", "errand", "--json", "--home", house(tmp_path, replies))
    assert (ended.returncode, json.loads(ended.stdout)["verdict"]) == (code, verdict)


def test_a_model_without_a_price_is_a_failure_and_not_a_budget_used_up() -> None:
    chief = {"name": "orchestrator", "pending": 0, "said_state": "failed", "said_class": "budget"}
    run = {"state": "running", "pending": 0, "orchestrator": "agent"}
    said = {UnpricedModel("anthropic", "odd").text(): (5, "failed"), "account o_1 has $0 left": (6, "out of budget")}
    for text, (code, word) in said.items():
        verdict = verdict_of({"runs": [run], "agents": [{**chief, "said": text}]})
        assert verdict is not None
        assert (verdict.code, verdict.word) == (code, word)
    assert "`prices` in config.yaml" in UnpricedModel("anthropic", "odd").text()


def test_a_question_that_is_the_prompt_is_shown_once() -> None:
    text = "What is to be done? " * 80
    cut = [f"{text[:1000]} ... [cut at 1,000 of {whole} characters]" for whole in ("4,000", "5,487")]
    assert is_one(*cut)
    assert is_one("Why?", "Why?")
    assert not is_one("the reply is no JSON", "Why?")
    assert not is_one(None, "Why?")


def test_a_run_that_may_take_no_turn_is_out_of_budget(tmp_path: Path) -> None:
    ended = ksi("run", "errand", "--turns", "0", "--home", house(tmp_path))
    assert ended.returncode == 6
    assert "● out of budget" in ended.stdout


def test_without_a_terminal_it_says_what_waits_and_leaves_it_parked(tmp_path: Path) -> None:
    home = house(tmp_path, agent={"provider": "external"})
    ended = ksi("run", "errand", "--home", home)
    assert ended.returncode == 6
    assert "helper waits for an answer: " in ended.stdout
    run = ended.stdout.split("ksi-mcp run --attach ")[1].split()[0]
    waiting = json.loads(ksi("call", "monitor_overview", f"orchestration={run}", "--home", home, "--json").stdout)
    ksi("call", "completion_answer", f"turn={waiting['parked'][0]['turn']}", "text=7", "--home", home)
    assert ksi("run", "--attach", run, "--home", home).returncode == 0


def test_detached_it_prints_the_id_and_a_worker_carries_it_out(tmp_path: Path) -> None:
    home = house(tmp_path)
    run = ksi("run", "errand", "--detach", "--quiet", "--home", home).stdout.strip()
    followed = ksi("run", "--attach", run, "--json", "--home", home)
    assert (followed.returncode, json.loads(followed.stdout)["orchestration"]) == (0, run)


MISTAKES = [
    ((), "name a pattern"),
    (("errand", "--attach", "o_1"), "name a pattern"),
    (("errand", "--var", "novalue"), "'novalue' is not KEY=VALUE"),
    (("errand", "--vars-file", "none.yaml"), "--vars-file cannot be read"),
    (("--attach", "o_1", "--budget", "1"), "leave the options of a start out"),
    (("--attach", "o_nothere"), "unknown orchestration"),
    (("erand",), "unknown composition 'erand'"),
]


def test_a_mistake_is_one_line_and_starts_nothing(tmp_path: Path) -> None:
    home = house(tmp_path)
    for arguments, says in MISTAKES:
        ended = ksi("run", *arguments, "--home", home)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert says in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1
    assert json.loads(ksi("call", "orchestration_list", "--home", home).stdout)["orchestrations"] == []


def test_variables_come_from_a_file_and_the_command_line_counts(tmp_path: Path) -> None:
    variables = {"topic": {"description": "What it is about."}, "depth": {"default": 1}}
    home = house(tmp_path / "home", variables=variables)
    file = tmp_path / "vars.yaml"
    file.write_text("topic: tea\ndepth: 2\n")
    ended = ksi("run", "errand", "--vars-file", str(file), "--var", "depth=3", "--json", "--home", home)
    run = json.loads(ended.stdout)["orchestration"]
    found = ksi("call", "agent_list", '{"filter": {"status": "terminated"}}', "--home", home)
    chief = next(agent for agent in json.loads(found.stdout)["agents"] if agent["name"] == "orchestrator")
    assert chief["orchestration"] == run
    told = json.loads(ksi("call", "agent_history", f"agent={chief['agent']}", "--home", home).stdout)
    prompt = told["turns"][0]["prompt"]
    assert '"topic": "tea"' in prompt
    assert '"depth": 3' in prompt


async def test_a_pipe_that_is_closed_early_ends_the_command_and_not_the_run(tmp_path: Path) -> None:
    home = house(tmp_path)
    command = [sys.executable, "-m", "ksi_mcp", "run", "errand", "--home", home]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=ENV)
    assert process.stdout is not None
    assert process.stderr is not None
    first = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
    process.stdout._transport.close()  # type: ignore[attr-defined]
    said = await asyncio.wait_for(process.stderr.read(), 30)
    assert await asyncio.wait_for(process.wait(), 30) == 141
    assert b"Traceback" not in said
    assert ksi("run", "--attach", first.split()[1], "--quiet", "--home", home).returncode == 0


# --------------------------------------------------------------------------------------- at a terminal


async def test_at_a_terminal_it_shows_the_run_and_leaves_a_summary(tmp_path: Path, open_terminal: Any) -> None:
    slow = [*HELPED[:2], {**HELPED[2], "latency_s": 2.5}]
    async with open_terminal("run", "errand", "--home", house(tmp_path, slow)) as terminal:
        await terminal.shows("helper", "thinks", "waits for 1 turn of others", "Ctrl-C leaves; the run goes on")
        assert not terminal.screen.cursor
        await terminal.shows("✓ success  score 0.9  errand")
        assert await terminal.ended() == 0
        assert "42, I think." in terminal.screen.text
        assert "Ctrl-C leaves" not in terminal.screen.text
        assert (terminal.restored, terminal.screen.strange) == (True, [])


async def test_a_question_is_asked_at_the_terminal_and_the_answer_goes_on_its_way(
    tmp_path: Path, open_terminal: Any
) -> None:
    home = house(tmp_path, agent={"provider": "external"})
    async with open_terminal("run", "errand", "--home", home) as terminal:
        await terminal.shows("helper needs an answer", "How many?", "answer for it (Enter leaves it parked):")
        terminal.send("Seven.\n")
        await terminal.shows("✓ success")
        assert await terminal.ended() == 0
        assert "Seven." in terminal.screen.text
        assert terminal.restored


async def test_enter_leaves_a_question_parked_and_the_exit_code_says_so(tmp_path: Path, open_terminal: Any) -> None:
    home = house(tmp_path, agent={"provider": "external"})
    async with open_terminal("run", "errand", "--home", home) as terminal:
        await terminal.shows("answer for it (Enter leaves it parked):")
        terminal.send("\n")
        await terminal.shows("● parked", "helper waits for an answer", "ksi-mcp run --attach o_")
        assert await terminal.ended() == 6
        assert terminal.restored


async def test_a_budget_without_room_is_raised_at_the_terminal(tmp_path: Path, open_terminal: Any) -> None:
    home = house(tmp_path, budget={"turns": 1, "policy": "park"})
    async with open_terminal("run", "errand", "--home", home) as terminal:
        await terminal.shows("helper needs room in a budget", "has used 1 of 1 turns; new limit in turns")
        terminal.send("1\n")
        await terminal.shows("that is no number above 1")
        terminal.send("5\n")
        await terminal.shows("✓ success")
        assert await terminal.ended() == 0


async def test_a_run_that_nothing_limits_is_started_on_purpose_only(tmp_path: Path, open_terminal: Any) -> None:
    home = house(tmp_path)
    async with open_terminal("run", "errand", "--provider", "openai_compatible", "--home", home) as terminal:
        await terminal.shows("Nothing limits what this run may spend. Start it? [y/N]")
        terminal.send("\n")
        assert await terminal.ended() == 3
        assert "not started; give it a limit with --budget or --turns" in terminal.screen.text
        assert terminal.restored
    assert json.loads(ksi("call", "orchestration_list", "--home", home).stdout)["orchestrations"] == []


@pytest.mark.parametrize(
    ("how", "code"), [("\x03", 130), (signal.SIGTERM, 143)], ids=["by Ctrl-C", "by a signal to end"]
)
async def test_leaving_says_that_the_run_goes_on_and_how_to_come_back(
    tmp_path: Path, open_terminal: Any, how: str | signal.Signals, code: int
) -> None:
    slow = [*HELPED[:2], {**HELPED[2], "latency_s": 4}]
    home = house(tmp_path, slow)
    async with open_terminal("run", "errand", "--home", home, columns=160) as terminal:
        await terminal.shows("helper", "thinks")
        if isinstance(how, str):
            terminal.send(how)
        else:
            terminal.process.send_signal(how)
        assert await terminal.ended() == code
        assert terminal.restored
        await terminal.shows("goes on in its worker", "ksi-mcp orchestration suspend o_")
        run = terminal.screen.text.split("run --attach ")[1].split()[0]
    async with open_terminal("run", "--attach", run, "--home", home) as again:
        await again.shows("✓ success")
        assert await again.ended() == 0


async def test_what_an_agent_writes_cannot_touch_the_terminal(tmp_path: Path, open_terminal: Any) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil\r\nnext\x1b[?1049h"
    replies = [HELPED[0], {**HELPED[1]}, {"match": {"agent": "helper"}, "reply": evil}]
    replies[1]["tool_calls"] = [{**END, "input": {**END["input"], "summary": evil}}]
    home = house(tmp_path, replies)
    async with open_terminal("run", "errand", "--home", home) as terminal:
        await terminal.shows("✓ success", "evil", "next")
        assert await terminal.ended() == 0
        assert (terminal.restored, terminal.screen.strange) == (True, [])
        written = b"".join(terminal.written).decode()
        assert "\x1b]0;" not in written
        assert "\u202e" not in written
        assert "\x1b[2J" not in written
    piped = ksi("run", "errand", "--home", home).stdout
    assert not [character for character in piped if character < " " and character != "\n"]
    assert "\x9b" not in piped


async def test_another_size_is_taken_in(tmp_path: Path, open_terminal: Any) -> None:
    slow = [*HELPED[:2], {**HELPED[2], "latency_s": 4}]
    async with open_terminal("run", "errand", "--home", house(tmp_path, slow), columns=120) as terminal:
        await terminal.shows("helper", "thinks", "tokens")
        terminal.resize(60, 16)
        await terminal.until(lambda screen: "helper" in screen.text and "tokens " not in screen.lines[4])
        assert max(len(line) for line in terminal.screen.lines) <= 60
        await terminal.shows("✓ success")
        assert await terminal.ended() == 0
