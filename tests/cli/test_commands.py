"""The commands as a person or a program runs them: real processes, exit codes, output that can be read."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import anthropic
import pytest

ROOT = Path(__file__).parent.parent.parent
# Nobody is logged in, and no key is there.
ENV = {
    **{
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ANTHROPIC_", "OPENAI_", "KSI_")) and name not in ("COLUMNS", "LINES", "NO_COLOR")
    },
    "PYTHONPATH": str(ROOT),
    "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
    "CLAUDE_CONFIG_DIR": "/nonexistent",
}


def ksi(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ksi_mcp", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, input=stdin, timeout=60, check=False)


def scripted(home: Path) -> str:
    """A data folder whose agents echo, and whose worker does not linger."""
    home.mkdir(exist_ok=True)
    (home / "config.yaml").write_text("provider: scripted\nworker: {idle_s: 0}\n")
    return str(home)


def test_version_and_help_say_what_there_is() -> None:
    assert ksi("--version").stdout.startswith("ksi-mcp 0.")
    helped = ksi("--help").stdout
    for command in ("serve", "worker", "demo", "init", "doctor", "events", "call", "credentials", "api-sim"):
        assert command in helped


def test_init_makes_a_folder_and_overwrites_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = ksi("init", "--home", str(home))
    assert (first.returncode, (home / "compositions").is_dir()) == (0, True)
    (home / "config.yaml").write_text("provider: scripted\n")
    assert ksi("init", "--home", str(home)).returncode == 0
    assert (home / "config.yaml").read_text() == "provider: scripted\n"


def test_the_config_that_init_writes_can_be_read_with_every_line_taken_in(tmp_path: Path) -> None:
    ksi("init", "--home", str(tmp_path))
    config = tmp_path / "config.yaml"
    taken_in = [line.removeprefix("# ") if ": " in line else line for line in config.read_text().splitlines()[3:]]
    (tmp_path / "script.yaml").write_text("default: {reply: ok}\n")
    config.write_text("\n".join(taken_in))
    assert ksi("doctor", "--home", str(tmp_path)).returncode == 0


def test_doctor_reports_for_people_and_for_programs(tmp_path: Path) -> None:
    home = scripted(tmp_path / "home")
    facts = json.loads(ksi("doctor", "--home", home, "--json").stdout)
    assert facts["providers"]["scripted"] == {"answers": True, "why": "echoes the prompt", "default": True}
    assert facts["missing"] == []
    assert facts["compositions"] >= 8
    assert "nothing is missing" in ksi("doctor", "--home", home).stdout


def test_doctor_names_a_bad_composition_and_a_missing_key(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("provider: anthropic\n")
    (tmp_path / "compositions").mkdir()
    (tmp_path / "compositions" / "bad.yaml").write_text("name: [unclosed\n")
    facts = json.loads(ksi("doctor", "--home", str(tmp_path), "--json").stdout)
    whats = " | ".join(each["what"] for each in facts["missing"])
    assert "user/bad.yaml" in whats
    assert "'anthropic' does not answer" in whats


def test_doctor_lists_every_setting(tmp_path: Path) -> None:
    settings = json.loads(ksi("doctor", "--settings", "--json").stdout)["settings"]
    assert {"provider", "worker.idle_s", "budget.usd", "scripted.script"} <= {each["key"] for each in settings}


def test_call_runs_a_tool_and_reads_its_arguments_in_three_ways(tmp_path: Path) -> None:
    home = scripted(tmp_path / "home")
    made = ksi("call", "agent_spawn", "name=one", "prompt=7", "--home", home, "--json")
    assert json.loads(made.stdout)["name"] == "one"
    sent = ksi("call", "agent:send", '{"agent": "one", "message": "hi", "wait_s": 20}', "--home", home)
    assert json.loads(sent.stdout)["text"] == "[one] hi"
    again = ksi("call", "agent_get", "-", "--home", home, "--json", stdin='{"agent": "one"}')
    assert json.loads(again.stdout)["system"] == "7"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("call", "agent_lst"), 2, "did you mean agent_list"),
        (("call", "agent_get", "agent=nobody"), 2, "unknown agent 'nobody'; `ksi-mcp agent list` shows 0 agents"),
        (("call", "agent_list", "limit=0"), 2, "limit"),
        (("call", "agent_list", "nonsense"), 2, "'nonsense' is no argument"),
        (("call", "routing_add_rule", "source_pattern=a:b", "target=system:x"), 3, "only the server emits it"),
        (("serve", "--transport", "carrier-pigeon"), 2, "carrier-pigeon"),
        (("nonsense",), 2, "nonsense"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    home = scripted(tmp_path / "home")
    ended = ksi(*arguments, *(("--home", home) if arguments[0] == "call" else ()))
    assert ended.returncode == code
    assert says in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "Traceback" not in ended.stderr


def test_a_bad_config_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("worker: {concurency: 3}\n")
    ended = ksi("call", "agent_list", "--home", str(tmp_path))
    assert ended.returncode == 2
    assert "worker.concurency" in ended.stderr


def test_doctor_says_why_a_worker_does_not_start_and_looks_at_the_rest_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("worker: {concurency: 3}\n")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker.log").write_text(f"error: {tmp_path}/x: key=1 token=abcdef is wrong\n")
    ended = ksi("doctor", "--home", str(tmp_path), "--json")
    facts = json.loads(ended.stdout)
    assert ended.returncode == 1
    assert facts["missing"][0]["what"] == "config.yaml cannot be used"
    assert "worker.concurency" in facts["missing"][0]["get"]
    assert facts["worker_error"] == "error: <data folder><path>: key=1 <hidden> is wrong"
    assert facts["compositions"] >= 8
    lines = ksi("doctor", "--home", str(tmp_path)).stdout
    assert "worker's log error: <data folder>" in lines
    assert "MISSING      config.yaml cannot be used: config.yaml: worker.concurency" in lines


def test_doctor_shows_what_takes_the_room_and_what_retention_would_remove(tmp_path: Path) -> None:
    home = scripted(tmp_path / "home")
    assert ksi("call", "agent_list", "--home", home).returncode == 0
    with sqlite3.connect(tmp_path / "home" / "ksi.db") as connection:
        for i in range(12):
            connection.execute(
                "INSERT INTO orchestration (orchestration_id, pattern, pattern_hash, state, orchestrator, vars,"
                " max_depth, created_by, started_at_ms)"
                " VALUES (?, 'p', 'h', 'completed', 'client', '{}', 9, 'operator', 0)",
                (f"o_{i}",),
            )
            connection.execute(
                "INSERT INTO event (name, data, source, orchestration_id, root_id, hops, depth, at_ms)"
                " VALUES ('note:made', ?, 'operator', ?, 'r', 0, 0, 0)",
                ("x" * 10_000 * (i + 1), f"o_{i}"),
            )
        connection.execute(
            "INSERT INTO worker (worker_id, pid, host, process_start, started_at_ms, beat, beat_ms)"
            " VALUES ('w_1', 4711, 'h', 's', 0, 1, 1000)"
        )
    connection.close()
    facts = json.loads(ksi("doctor", "--home", home, "--json").stdout)
    largest = facts["store"]["largest_orchestrations"]
    assert [run["orchestration_id"] for run in largest] == [f"o_{i}" for i in range(11, 1, -1)]
    assert largest[0]["bytes"] == 120_200
    assert facts["store"]["tables"]["event"] > 700_000
    assert facts["retention_would_free"] == {"events": 12, "turns": 0, "bytes": 782_400, "complete": True}
    assert facts["worker_sign"]["pid"] == 4711
    lines = ksi("doctor", "--home", home).stdout
    assert "largest runs o_11 p, completed: 120.2 kB" in lines
    assert "would remove 12 events and 0 turns (782.4 kB) now" in lines
    assert "the last one was there until" in lines


async def test_events_follow_shows_what_another_process_does(tmp_path: Path) -> None:
    home = scripted(tmp_path / "home")
    ksi("call", "agent_list", "--home", home)
    command = [sys.executable, "-m", "ksi_mcp", "events", "--follow", "--json", "--names", "note:*", "--home", home]
    follower = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=ENV)
    assert follower.stdout is not None
    try:
        async with asyncio.timeout(40):
            seen: dict[str, Any] = {}
            while not seen:  # until the follower listens, what is emitted is shown as history or live: both count
                ksi("call", "event_emit", "event=note:made", "--home", home)
                line = await asyncio.wait_for(follower.stdout.readline(), 20)
                seen = json.loads(line)
        assert (seen["event"], seen["source"]) == ("note:made", "operator")
    finally:
        follower.terminate()
        await follower.wait()


async def test_api_sim_answers_the_real_sdk_from_a_script_and_keeps_what_it_was_sent(tmp_path: Path) -> None:
    script, kept = tmp_path / "script.yaml", tmp_path / "kept.jsonl"
    script.write_text("replies: [{match: {prompt: 'ping'}, reply: pong}]\n")
    command = [sys.executable, "-m", "ksi_mcp", "api-sim", "--script", str(script), "--keep", str(kept)]
    simulator = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=ENV
    )
    assert simulator.stdout is not None
    try:
        url = (await asyncio.wait_for(simulator.stdout.readline(), 30)).decode().strip()
        async with anthropic.AsyncAnthropic(api_key="any", base_url=url, max_retries=0) as client:
            answer = await client.messages.create(
                model="claude-haiku-5-5", max_tokens=50, messages=[{"role": "user", "content": "ping"}]
            )
        assert answer.content[0].text == "pong"
    finally:
        simulator.terminate()
        await simulator.communicate()
    assert simulator.returncode == 0
    (line,) = kept.read_text("utf-8").splitlines()
    assert json.loads(line)["messages"] == [{"role": "user", "content": "ping"}]
