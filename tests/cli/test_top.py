"""`ksi-mcp top`: real processes at real terminals, and the parts of it that are plain functions."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, Group
from rich.text import Text

from ksi_mcp.cli.live.painting import Painter
from ksi_mcp.cli.live.terminal import KeyReader
from ksi_mcp.cli.live.top_board import Board, Wish
from ksi_mcp.testing import open_test_app

ROOT = Path(__file__).parent.parent.parent
ENV = {
    **{
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ANTHROPIC_", "OPENAI_", "KSI_")) and name not in ("COLUMNS", "LINES", "NO_COLOR")
    },
    "PYTHONPATH": str(ROOT),
}
EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil\r\nnext\x1b[?1049l"


def ksi(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ksi_mcp", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=ENV, stdin=subprocess.DEVNULL, timeout=60, check=False
    )


@contextlib.asynccontextmanager
async def house(root: Path, **script: Any) -> AsyncIterator[Any]:
    """A data folder with a worker in this process, and two agents: ada has said something, bob is at work."""
    replies = [
        {"match": {"agent": "ada"}, "reply": "It is 42."},
        {"match": {"agent": "bob"}, "reply": "later", "latency_s": 600},
    ]
    async with open_test_app(home=root, replies=script.get("replies", replies)) as app:
        yield app


async def at_work(app: Any) -> str:
    """The run that everything belongs to; bob's turn has begun."""
    run = str(
        (await app.call("orchestration_start", pattern="pipeline_with_review", vars={"task": "x"}))["orchestration"]
    )
    await app.call("agent_spawn", name="ada", prompt="You answer.", orchestration=run)
    await app.call("agent_send", agent="ada", message="Six times seven?", wait_s=20)
    await app.call("agent_spawn", name="bob", prompt="You wait.", orchestration=run, message="Wait.")
    async with asyncio.timeout(20):
        while (await app.call("monitor_overview"))["queue"]["running"] == 0:  # noqa: ASYNC110  what is awaited is a row
            await asyncio.sleep(0.01)
    return run


# ------------------------------------------------------------------------------------------- once


async def test_once_prints_a_frame_into_a_pipe_and_json_the_same_as_data(tmp_path: Path) -> None:
    async with house(tmp_path) as app:
        run = await at_work(app)
        frame = await asyncio.to_thread(ksi, "top", "--once", "--home", str(tmp_path))
        data = await asyncio.to_thread(ksi, "top", "--json", "--orchestration", run, "--home", str(tmp_path))
    assert (frame.returncode, frame.stderr) == (0, "")
    assert not [character for character in frame.stdout if character < " " and character != "\n"]
    assert "pipeline_with_review" in frame.stdout
    assert "✓ It is 42." in frame.stdout
    assert "thinks" in frame.stdout
    facts = json.loads(data.stdout)
    agents = {agent["name"]: agent for agent in facts["agents"]}
    assert (agents["bob"]["now"]["state"], agents["ada"]["said"], agents["ada"]["done"]) == ("running", "It is 42.", 1)
    assert (facts["queue"]["running"], facts["usd_per_min"], facts["today_usd"]) == (1, 0, 0)


def test_an_unknown_run_is_a_mistake_of_one_line(tmp_path: Path) -> None:
    ended = ksi("top", "--once", "--orchestration", "o_nothere", "--home", str(tmp_path))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "unknown orchestration 'o_nothere'" in ended.stderr


def test_a_page_of_thousands_of_agents_is_what_is_read(tmp_path: Path) -> None:
    assert ksi("top", "--json", "--home", str(tmp_path)).returncode == 0
    with sqlite3.connect(tmp_path / "ksi.db") as connection:
        for n in range(3_000):
            key = f"a_{n:010}"
            connection.execute(
                "INSERT INTO agent (agent_id, name, status, provider, model, system, capabilities, settings,"
                " created_by, created_at_ms, last_active_ms)"
                " VALUES (?, ?, 'active', 'scripted', 'm', '', '[]', '{}', 'operator', 0, 0)",
                (key, f"agent_{n:04}"),
            )
            connection.execute("INSERT INTO session (session_id) VALUES (?)", (key,))
            connection.execute("INSERT INTO account (account_id, parent_id) VALUES (?, 'global')", (key,))
    connection.close()
    facts = json.loads(ksi("top", "--json", "--home", str(tmp_path)).stdout)
    assert (facts["agents_fitting"], facts["agents_living"]) == (3_000, 3_000)
    assert 20 < len(facts["agents"]) < 100
    assert " of 3,000" in ksi("top", "--once", "--home", str(tmp_path)).stdout


# ------------------------------------------------------------------------------------- at a terminal


async def test_keys_select_look_closer_filter_pause_and_hold_a_run(tmp_path: Path, open_terminal: Any) -> None:
    async with house(tmp_path) as app:
        run = await at_work(app)
        async with open_terminal("top", "--interval", "0.1", "--home", str(tmp_path), rows=40) as terminal:
            await terminal.shows("AGENT", "bob", "thinks", "✓ It is 42.", "EVENTS AND DELIVERIES")
            terminal.send("/ada")
            await terminal.until(lambda screen: "filter: ada" in screen.text and "of 1" in screen.text)
            terminal.send("\r\r")
            await terminal.shows("CONVERSATION", "> Six times seven?", "It is 42.", "You answer.")
            terminal.send("\x1b")
            await terminal.until(lambda screen: "CONVERSATION" not in screen.text)
            terminal.send("\x1b")
            await terminal.until(lambda screen: "thinks" in screen.text and "filter:" not in screen.text)
            terminal.send("?")
            await terminal.shows("suspend the selected run, or resume it")
            terminal.send("x")
            terminal.send("\t\r")
            await terminal.shows("RULES", "NEXT", run)
            terminal.send("\x1b")
            await terminal.until(lambda screen: "NEXT" not in screen.text)
            terminal.send("s")
            await terminal.shows(f"suspend {run}? y/n")
            terminal.send("n")
            await terminal.until(lambda screen: "y/n" not in screen.text)
            assert (await app.call("orchestration_status", orchestration=run))["state"] == "running"
            terminal.send("s")
            await terminal.shows("y/n")
            terminal.send("y")
            await terminal.shows("1 held", "suspended")
            assert (await app.call("orchestration_status", orchestration=run))["state"] == "suspended"
            terminal.send("p")
            await terminal.shows(" paused")
            await app.call("agent_spawn", name="carol", prompt="You are new.")
            terminal.send("p")
            await terminal.shows("carol")
            terminal.send("q")
            assert await terminal.ended() == 0
            assert (terminal.restored, terminal.screen.strange) == (True, [])


async def test_what_another_process_commits_shows_without_a_key(tmp_path: Path, open_terminal: Any) -> None:
    async with house(tmp_path) as app, open_terminal("top", "--home", str(tmp_path)) as terminal:
        await terminal.shows("0 agents")
        await app.call("agent_spawn", name="ada", prompt="You answer.", message="Six times seven?")
        await terminal.shows("✓ It is 42.", "1 agent")
        terminal.send("q")
        assert await terminal.ended() == 0


@pytest.mark.parametrize(
    ("how", "code"), [("\x03", 130), (signal.SIGTERM, 143)], ids=["by Ctrl-C", "by a signal to end"]
)
async def test_the_terminal_is_given_back_however_it_ends(
    tmp_path: Path, open_terminal: Any, how: str | signal.Signals, code: int
) -> None:
    async with open_terminal("top", "--home", str(tmp_path)) as terminal:
        await terminal.shows("q quit")
        assert terminal.screen.alternate
        if isinstance(how, str):
            terminal.send(how)
        else:
            terminal.process.send_signal(how)
        assert await terminal.ended() == code
        assert (terminal.restored, terminal.screen.strange) == (True, [])


async def test_the_terminal_is_given_back_after_a_failure(tmp_path: Path, open_terminal: Any) -> None:
    async with open_terminal("top", "--orchestration", "o_nothere", "--home", str(tmp_path)) as terminal:
        await terminal.shows("error: unknown orchestration 'o_nothere'")
        assert await terminal.ended() == 2
        assert terminal.restored


@pytest.mark.skipif(not hasattr(signal, "SIGTSTP"), reason="there is no job control here")
async def test_while_it_rests_the_terminal_is_the_shells(tmp_path: Path, open_terminal: Any) -> None:
    async with open_terminal("top", "--home", str(tmp_path)) as terminal:
        await terminal.shows("q quit")
        terminal.process.send_signal(signal.SIGTSTP)
        await terminal.until(lambda _: terminal.restored)
        terminal.process.send_signal(signal.SIGCONT)
        await terminal.until(lambda screen: screen.alternate and "q quit" in screen.text)
        terminal.send("q")
        assert await terminal.ended() == 0
        assert terminal.restored


async def test_narrow_and_wide_and_low_terminals_hold_whole_lines(tmp_path: Path, open_terminal: Any) -> None:
    async with house(tmp_path) as app:
        await at_work(app)
        async with open_terminal("top", "--home", str(tmp_path), columns=60, rows=20) as terminal:
            await terminal.shows("bob", "thinks", "pipeline_with")
            assert terminal.screen.scrolled == []
            terminal.resize(180, 50)
            await terminal.shows("DELIVERIES", "tokens", "of limit")
            terminal.resize(40, 10)
            await terminal.until(lambda screen: "bob" in screen.text and "q quit" in screen.lines[-1])
            terminal.send("q")
            assert await terminal.ended() == 0
            assert (terminal.restored, terminal.screen.scrolled) == (True, [])


async def test_what_agents_write_cannot_touch_the_terminal(tmp_path: Path, open_terminal: Any) -> None:
    async with house(tmp_path, replies=[{"match": {"agent": "*"}, "reply": EVIL}]) as app:
        await app.call("agent_spawn", name="mallory", prompt=EVIL)
        await app.call("agent_send", agent="mallory", message=EVIL, wait_s=20)
        await app.call("event_emit", event="note:evil", data={EVIL: EVIL})
        async with open_terminal("top", "--home", str(tmp_path)) as terminal:
            await terminal.shows("mallory", "evil", "note:evil")
            terminal.send("\r")
            await terminal.shows("CONVERSATION", "next")
            terminal.send("q")
            assert await terminal.ended() == 0
            assert (terminal.restored, terminal.screen.strange) == (True, [])
            written = b"".join(terminal.written).decode()
            assert "\x1b]0;" not in written
            assert "\u202e" not in written
        once = await asyncio.to_thread(ksi, "top", "--once", "--home", str(tmp_path))
    assert not [character for character in once.stdout if character < " " and character != "\n"]


# ------------------------------------------------------------------------------------------- its parts


def test_keys_come_in_pieces_and_are_known_by_name() -> None:
    reader = KeyReader()
    assert reader.feed(b"j\x1b[A\x1b") == ["j", "up"]
    assert reader.waits
    assert reader.feed(b"[6~\xc3") == ["pagedown"]
    assert reader.feed(b"\xa9\r\x7f\x1bOB") == ["é", "enter", "backspace", "down"]
    assert (reader.feed(b"\x1b"), reader.flush()) == ([], ["escape"])
    assert reader.feed(b"\x1b[99;99u\x1b\x1bq\x00") == ["escape", "escape", "q"]
    assert KeyReader().feed(b"\x1b[" + b"1" * 100 + b"q") == []


def test_only_lines_that_changed_are_written_again() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=20, height=6, color_system=None)
    painter = Painter(console, alternate=True)
    painter.begin()
    painter.paint(Group(Text("head"), Text("one"), Text("x" * 20)))
    before = len(out.getvalue())
    painter.paint(Group(Text("head"), Text("two"), Text("x" * 20)))
    assert out.getvalue()[before:] == "\x1b[2;1Htwo\x1b[0K"
    before = len(out.getvalue())
    painter.paint(Group(Text("head"), Text("two"), Text("x" * 20)))
    assert out.getvalue()[before:] == ""
    painter.end()
    assert out.getvalue().endswith("\x1b[?1049l\x1b[?25h")


SEEN = {
    "runs": [{"orchestration": "o_1", "state": "running"}, {"orchestration": "o_2", "state": "completed"}],
    "agents": [{"agent": f"a_{n}", "orchestration": "o_1"} for n in range(10)],
    "agents_fitting": 25,
}


def test_the_board_turns_pages_and_asks_before_it_holds_a_run() -> None:
    board = Board(page=10)
    board.saw(SEEN)
    assert board.key("up") is None
    assert board.key("j") is None
    assert board.selected == ("agents", "a_1")
    assert board.key("pagedown") == Wish(kind="look")
    assert (board.offset, board.agent_at) == (10, 11)
    assert board.key("G") == Wish(kind="look")
    assert (board.offset, board.agent_at) == (20, 24)
    assert board.saw({**SEEN, "agents_fitting": 5}) is True
    assert (board.offset, board.agent_at) == (0, 4)
    board.key("s")
    assert board.asking == Wish(kind="control", run="o_1", action="suspend")
    assert board.key("N") is None
    assert board.key("y") is None
    board.key("tab")
    board.key("down")
    board.key("s")
    assert (board.asking, board.said) == (None, "o_2 has ended")
    assert board.key("q") == Wish(kind="quit")
