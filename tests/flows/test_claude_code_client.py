"""A real Claude Code as the client: it finds, starts, steers and ends a run by our tools; its model is a script.

Nothing leaves the machine. What it did is read off our store, what it told its model off the simulated API, and what
it said to our server off a tap in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import sqlite3
import struct
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.clock import Clock, SystemClock
from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.tools.catalog import ALL_TOOLS, DEFAULT_TOOLS
from ksi_mcp.transports.faces.guide import INSTRUCTIONS
from ksi_mcp.transports.faces.listing import listed
from ksi_mcp.web.sim import SimServer
from ksi_mcp.yamlio import safe_load

PROJECT = Path(__file__).parents[2]
SERVE = [sys.executable, "-m", "ksi_mcp", "serve"]
MODERN, LEGACY = "2026-07-28", "2025-11-25"
VERSION = "io.modelcontextprotocol/protocolVersion"
TOOLS = {f"mcp__ksi__{tool.name}": tool for tool in ALL_TOOLS}
CLIENTS = PROJECT / "packaging" / "clients"
PATIENCE_S = 40
INLINE_CHARS = 40_000
"""Half of this more, and Claude Code shows its model a preview of the result only."""


@dataclass
class Done:
    """A session that ended: what it printed, and every request to its model."""

    events: list[dict[str, Any]]
    bodies: list[dict[str, Any]]

    @property
    def result(self) -> dict[str, Any]:
        return next(event for event in self.events if event["type"] == "result")

    @property
    def init(self) -> dict[str, Any]:
        return next(event for event in self.events if event.get("subtype") == "init")

    @property
    def said(self) -> list[str]:
        """All text that the model was sent, in order."""
        return [
            *texts(self.bodies[-1]["system"]),
            *(t for m in self.bodies[-1]["messages"] for t in texts(m["content"])),
        ]

    def loaded(self, request: int) -> dict[str, dict[str, Any]]:
        """Our tools as the model saw them in a request."""
        return {tool["name"]: tool for tool in self.bodies[request]["tools"] if tool["name"].startswith("mcp__")}

    def calls(self) -> list[tuple[str, str, bool]]:
        """Every tool call of the model: the tool, what came back, and whether as an error."""
        messages = self.bodies[-1]["messages"]
        blocks = [block for m in messages if isinstance(m["content"], list) for block in m["content"]]
        back = {block["tool_use_id"]: block for block in blocks if block["type"] == "tool_result"}
        used = [block for block in blocks if block["type"] == "tool_use"]
        return [
            (use["name"], "\n".join(texts(back[use["id"]]["content"])), bool(back[use["id"]].get("is_error")))
            for use in used
        ]

    def back(self, tool: str) -> list[Any]:
        """What came back from a tool of ours, call by call."""
        return [json.loads(text) for name, text, wrong in self.calls() if name == f"mcp__ksi__{tool}" and not wrong]


def texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [str(part.get("text", part.get("tool_name", ""))) for part in content]


class Gate(SystemClock):
    """A scripted latency lasts until the gate is opened."""

    def __init__(self) -> None:
        self.called, self.open = asyncio.Event(), asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.called.set()
        await self.open.wait()


def script(*rounds: dict[str, Any] | str, prompt: str | None = None) -> dict[str, Any]:
    """What the model does, round by round: calls of tools (`tool: input`, `mcp__ksi__` is added), or words."""
    replies: list[dict[str, Any]] = []
    for number, said in enumerate(rounds, start=1):
        # Who calls is a JSON object here, and not the id of an agent of ours.
        entry: dict[str, Any] = {"match": {"agent": "{*", "round": number, "prompt": prompt}}
        if isinstance(said, str):
            replies.append({**entry, "reply": said})
            continue
        calls = [(name.partition("#")[0], given) for name, given in said.items()]
        ours = [(f"mcp__ksi__{name}" if name in {t.name for t in ALL_TOOLS} else name, given) for name, given in calls]
        replies.append({**entry, "tool_calls": [{"name": name, "input": given} for name, given in ours]})
    return {"replies": replies}


def select(*names: str) -> dict[str, Any]:
    """The model loads tools that it knows by name only."""
    return {"ToolSearch": {"query": "select:" + ",".join(f"mcp__ksi__{name}" for name in names), "max_results": 20}}


class Tap:
    """A relay on loopback that remembers what the client sends."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connections: list[bytearray] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = bytearray()
        self._connections.append(seen)
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(_pump(reader, back, seen), _pump(there, writer, None))

    def requests(self) -> list[tuple[bytes, dict[str, Any] | None]]:
        """The head and the JSON body of every HTTP request."""
        found: list[tuple[bytes, dict[str, Any] | None]] = []
        for seen in self._connections:
            rest = bytes(seen)
            while rest:
                head, _, rest = rest.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                size = int(length[1]) if length else 0
                found.append((head, json.loads(rest[:size]) if size else None))
                rest = rest[size:]
        return found


def _look_away(loop: asyncio.AbstractEventLoop, screen: int) -> None:
    """What is on the screen is taken off it, or it would fill up."""
    try:
        os.read(screen, 65_536)
    except OSError:  # nobody writes there any more
        loop.remove_reader(screen)


async def _pump(source: asyncio.StreamReader, to: asyncio.StreamWriter, seen: bytearray | None) -> None:
    try:
        while data := await source.read(65_536):
            if seen is not None:
                seen += data
            to.write(data)
            await to.drain()
    finally:
        to.close()


@dataclass
class Desk:
    """A data folder, and Claude Code at its side."""

    command: str
    root: Path
    sim: SimServer
    heard: list[bytes]
    environ: dict[str, str]
    entry: dict[str, Any]
    """The server, as a client is told of it."""
    tap: Tap | None = None
    sessions: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def begin(self, prompt: str, *more: str) -> asyncio.subprocess.Process:
        (self.root / "mcp.json").write_text(json.dumps({"mcpServers": {"ksi": self.entry}}))
        arguments = ["-p", prompt, "--mcp-config", str(self.root / "mcp.json"), "--strict-mcp-config"]
        arguments += ["--output-format", "stream-json", "--verbose", "--no-session-persistence", *more]
        process = await asyncio.create_subprocess_exec(
            self.command,
            *arguments,
            env=self.environ,
            cwd=self.root / "user",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self.sessions.append(process)
        return process

    async def say(self, prompt: str, *more: str, allowed: bool = True) -> Done:
        """One whole `claude -p`."""
        before = len(self.heard)
        process = await self.begin(prompt, *more, *(("--allowedTools", "mcp__ksi") if allowed else ()))
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate()
        events = [json.loads(line) for line in out.splitlines()]
        assert process.returncode == 0, (err, events[-1:])
        return Done(events=events, bodies=[json.loads(raw) for raw in self.heard[before:]])

    @asynccontextmanager
    async def terminal(self, prompt: str) -> AsyncIterator[None]:
        """Claude Code as a person sees it, at work on a first prompt; it asks nothing that was answered long ago."""
        here = self.root / "user"
        self._answer_what_it_asks_at_first(here)
        (self.root / "mcp.json").write_text(json.dumps({"mcpServers": {"ksi": self.entry}}))
        arguments = ["--mcp-config", str(self.root / "mcp.json"), "--strict-mcp-config", "--allowedTools", "mcp__ksi"]
        ours, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        process = await asyncio.create_subprocess_exec(
            self.command,
            *arguments,
            "--",
            prompt,
            env=self.environ | {"TERM": "xterm-256color", "MCP_CONNECTION_NONBLOCKING": "0"},
            cwd=here,
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
        )
        self.sessions.append(process)
        os.close(its)
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, _look_away, loop, ours)
        try:
            yield
        finally:
            process.kill()
            await process.wait()
            loop.remove_reader(ours)
            os.close(ours)

    def _answer_what_it_asks_at_first(self, here: Path) -> None:
        answers = {
            "hasCompletedOnboarding": True,
            "theme": "dark",
            "customApiKeyResponses": {"approved": [self.environ["ANTHROPIC_API_KEY"]], "rejected": []},
            "projects": {str(here): {"hasTrustDialogAccepted": True, "hasCompletedProjectOnboarding": True}},
        }
        settings = Path(self.environ["CLAUDE_CONFIG_DIR"])
        settings.mkdir()
        (settings / ".claude.json").write_text(json.dumps(answers))

    async def run(self, *command: str, status: int = 0) -> str:
        """Any other command of Claude Code."""
        process = await asyncio.create_subprocess_exec(
            *command,
            env=self.environ,
            cwd=self.root / "user",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(PATIENCE_S):
            out, _ = await process.communicate()
        assert process.returncode == status, out.decode()
        return out.decode()

    def wire(self) -> list[dict[str, Any]]:
        """What Claude Code sent to our server, message by message."""
        if self.tap is not None:
            return [body for _, body in self.tap.requests() if body is not None]
        return [json.loads(line) for line in (self.root / "wire.jsonl").read_text("utf-8").splitlines()]

    def methods(self) -> list[str]:
        """The methods of what it sent, as far as it is there in full; of a tool call, the tool instead."""
        wire = self.root / "wire.jsonl"
        lines = wire.read_text("utf-8").splitlines(keepends=True) if wire.exists() else []
        messages = [json.loads(line) for line in lines if line.endswith("\n")]
        return [
            message["params"]["name"] if message["method"] == "tools/call" else message["method"]
            for message in messages
            if "method" in message
        ]

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.root / "home" / "ksi.db", timeout=30)
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    def facts(self, name: str) -> list[dict[str, Any]]:
        """What the events of a name say, oldest first."""
        found = self.rows("SELECT data FROM event WHERE name = ? ORDER BY event_id", name)
        return [json.loads(data) for (data,) in found]


OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]


@asynccontextmanager
async def serving(home: Path, environ: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
    """The server over HTTP; the client configuration that it prints."""
    command = [*SERVE, "--home", str(home), "--transport", "all", "--port", "0", "--worker", "inside"]
    process = await asyncio.create_subprocess_exec(*command, env=environ, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            printed = (await process.stderr.readuntil(b"\n}\n")).decode()
            printed = printed.replace("${KSI_TOKEN}", (home / "token").read_text("utf-8").strip())
            yield json.loads(printed[printed.index("\n{") :])["mcpServers"]["ksi"]
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


@pytest.fixture
def open_desk(tmp_path: Path, claude_code: Any) -> OpenDesk:
    @asynccontextmanager
    async def opened(
        replies: dict[str, Any],
        *,
        over: str = "stdio",
        worker: str = "inside",
        negotiation: str = "auto",
        clock: Clock | None = None,
        **more: Any,
    ) -> AsyncIterator[Desk]:
        root, home, heard = tmp_path, tmp_path / "home", list[bytes]()
        home.mkdir()
        async with (
            SimServer(Script(parse_script(replies)), heard=heard.append, clock=clock) as sim,
            contextlib.AsyncExitStack() as stack,
        ):
            config = {"provider": "scripted", "anthropic": {"base_url": sim.url}, "worker": {"idle_s": 0.2}} | more
            (home / "config.yaml").write_text(json.dumps(config))
            environ = claude_code.environ(root / "user", sim.url) | {
                "MCP_PROTOCOL_NEGOTIATION": negotiation,
                "DISABLE_AUTOUPDATER": "1",
                "TMPDIR": str(root),
                "PYTHONPATH": str(PROJECT),
            }
            tap = None
            if over == "stdio":
                tapped = 'tee -a "$0" | exec "$@"'
                server = [*SERVE, "--home", str(home), "--worker", worker]
                entry = {"command": "/bin/sh", "args": ["-c", tapped, str(root / "wire.jsonl"), *server]}
            else:
                entry = await stack.enter_async_context(serving(home, environ))
                base, _ = entry["url"].rsplit("/", 1)
                tap = Tap(int(base.rpartition(":")[2]))
                port = await stack.enter_async_context(tap.listening())
                path = {"http": "mcp", "sse": "sse"}[over]
                entry = {**entry, "type": over, "url": f"http://127.0.0.1:{port}/{path}"}
            desk = Desk(claude_code.command, root, sim, heard, environ, entry, tap)
            try:
                yield desk
            finally:
                for process in desk.sessions:
                    if process.returncode is None:
                        process.kill()
                        await process.wait()
        async with asyncio.timeout(PATIENCE_S):
            while processes(home):  # noqa: ASYNC110  nothing is left behind: no server, no worker
                await asyncio.sleep(0.01)

    return opened


def processes(home: Path) -> list[str]:
    """The processes that run on a data folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if str(home) in line]


FLOW = script(
    {"ToolSearch": {"query": "+ksi discover pattern start orchestration", "max_results": 4}},
    {"composition_discover": {"task": "decide between two databases, several opinions", "type": "orchestration"}},
    select(
        "composition_get", "orchestration_start", "agent_spawn", "agent_send", "agent_wait", "routing_add_rule",
        "event_emit", "completion_answer", "composition_track_decision", "composition_fork", "orchestration_complete",
    ) | {"ToolSearch#2": {"query": "select:ReadMcpResourceTool", "max_results": 1}},
    {"composition_get": {"name": "consensus"}},
    {
        "orchestration_start": {
            "pattern": "consensus",
            "vars": {"question": "Which database?"},
            "budget": {"usd": 1, "turns": 20},
        }
    },
    {
        "agent_spawn": {
            "name": "scout", "prompt": "You look around.", "orchestration": "{{results[5].orchestration}}",
            "message": "What is there?",
        },
        "agent_spawn#2": {
            "name": "critic", "prompt": "You find the risk.", "orchestration": "{{results[5].orchestration}}",
            "provider": "external",
        },
        "agent_send": {"agent": "nobody", "message": "are you there?"},
    },
    {
        "routing_add_rule": {
            "source_pattern": "review:*", "target": "agent:{{results[7].agent}}",
            "scope": "orchestration:{{results[5].orchestration}}", "reason": "the critic reads reviews",
        },
    },
    {
        "event_emit": {
            "event": "review:asked", "data": {"of": "sqlite — “one file”"},
            "orchestration": "{{results[5].orchestration}}",
        },
    },
    {"agent_wait": {"agents": ["{{results[6].agent}}", "{{results[7].agent}}"], "timeout_s": 20}},
    {"completion_answer": {"turn": "{{results[11].turns[1].turn}}", "text": "A single writer."}},
    {"agent_wait": {"turns": ["{{results[11].turns[0].turn}}", "{{results[11].turns[1].turn}}"], "timeout_s": 20}},
    {
        "composition_track_decision": {
            "pattern": "consensus", "decision": "sqlite", "context": {"risk": "{{results[13].turns[1].text}}"},
            "reasoning": "one file to copy", "confidence": 0.9, "orchestration": "{{results[5].orchestration}}",
        },
        "composition_fork": {
            "parent": "consensus", "name": "consensus_quick", "reason": "one round was enough",
            "modifications": {"variables.max_rounds.default": 1},
        },
    },
    {
        "ReadMcpResourceTool": {"server": "ksi", "uri": "ksi://orchestrations/{{results[5].orchestration}}"},
    },
    {
        "orchestration_complete": {
            "orchestration": "{{results[5].orchestration}}", "outcome": "success", "score": 0.8, "summary": "sqlite"
        }
    },
    "The run {{results[5].orchestration}} is complete.",
)  # fmt: skip


@pytest.mark.parametrize(
    ("over", "negotiation", "era"),
    [
        ("stdio", "auto", MODERN),
        ("stdio", "legacy", LEGACY),
        ("http", "auto", MODERN),
        ("http", "legacy", LEGACY),
        ("sse", "auto", LEGACY),  # it speaks no other over SSE
    ],
)
async def test_claude_code_carries_out_a_whole_run(open_desk: OpenDesk, over: str, negotiation: str, era: str) -> None:
    async with open_desk(FLOW, over=over, negotiation=negotiation) as desk:
        done = await desk.say("Which database shall we take? Use a team.")
        run = done.back("orchestration_start")[0]["orchestration"]
        assert done.result["result"] == f"The run {run} is complete."
        what_the_model_saw(done)
        what_the_server_heard(desk, over, era)
        what_is_in_the_store(desk, done, run)


def what_the_model_saw(done: Done) -> None:
    assert [(server["name"], server["status"]) for server in done.init["mcp_servers"]] == [("ksi", "connected")]
    # At first only names, and the instructions whole: what a model finds our tools by.
    first = "\n".join(done.said)
    assert INSTRUCTIONS.rstrip() in first
    assert done.loaded(0) == {}
    names = [line for line in first.splitlines() if line.startswith("mcp__")]
    assert sorted(names) == sorted(f"mcp__ksi__{name}" for name in DEFAULT_TOOLS)
    # What it searched for came with the declaration that we gave, and was called only then.
    found = done.calls()[0][1].split()
    assert {"mcp__ksi__composition_discover", "mcp__ksi__orchestration_start"} <= set(found)
    assert set(done.loaded(1)) == set(found)
    for name, tool in done.loaded(-1).items():
        ours = listed(TOOLS[name])
        assert (tool["description"], tool["input_schema"]) == (ours.description, ours.input_schema)
    called = {name for name, _, _ in done.calls() if name.startswith("mcp__")}
    assert called <= set(done.loaded(-1))
    # Data as compact JSON, whole; an error as words that say what to do.
    assert done.result["permission_denials"] == []
    for name, text, wrong in done.calls():
        assert len(text) < INLINE_CHARS
        if name.startswith("mcp__") and not wrong:
            assert text == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
    (error,) = [(name, text) for name, text, wrong in done.calls() if wrong]
    assert error == ("mcp__ksi__agent_send", "unknown agent 'nobody'; agent_list shows 6 agents")
    ((_, resource, _),) = [call for call in done.calls() if call[0] == "ReadMcpResourceTool"]
    (content,) = json.loads(resource)["contents"]
    assert json.loads(content["text"])["state"] == "running"
    # The person at `claude -p` is nobody: the question was put, and stayed.
    asked, answered = (wait["turns"] for wait in done.back("agent_wait"))
    assert [(turn["status"], turn.get("parked_on")) for turn in asked] == [("done", None), ("parked", "answer")]
    assert [turn["text"] for turn in answered] == ["[scout] What is there?", "A single writer."]


def what_the_server_heard(desk: Desk, over: str, era: str) -> None:
    messages = [message for message in desk.wire() if "method" in message]
    methods = [message["method"] for message in messages]
    if era == MODERN:
        assert methods[0] == "server/discover"
        # A start that takes more than 3 s makes it try the older opening too, which is refused, and come back.
        spoken = [message["params"]["_meta"][VERSION] for message in messages if message["method"] != "initialize"]
        assert set(spoken) == {MODERN}
        capabilities = messages[0]["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"]
    else:
        assert methods[:2] == ["initialize", "notifications/initialized"]
        assert "server/discover" not in methods
        assert messages[0]["params"]["protocolVersion"] == LEGACY
        capabilities = messages[0]["params"]["capabilities"]
    assert set(capabilities) == {"roots", "elicitation"}
    calls = [message["params"] for message in messages if message["method"] == "tools/call"]
    assert all("progressToken" in call["_meta"] for call in calls)
    # The question of the parked turn: in the modern era the call is repeated with the answer, before it is asked apart.
    waits = [call for call in calls if call["name"] == "agent_wait"]
    answers = [message["result"] for message in desk.wire() if "result" in message]
    if era == MODERN:
        given = [list(call.get("inputResponses", {}).values()) for call in waits]
        assert given == [[], [{"action": "cancel"}], []]
    else:
        assert (len(waits), answers) == (2, [{"action": "cancel"}])
    if desk.tap is not None:
        heads = [head for head, _ in desk.tap.requests()]
        wanted = desk.entry["headers"]["Authorization"].encode()
        assert all(wanted in head for head in heads)
        later = [head for head, body in desk.tap.requests() if body and body.get("method") == "tools/call"]
        assert all(f"mcp-protocol-version: {era}".encode() in head.lower() for head in later)


def what_is_in_the_store(desk: Desk, done: Done, run: str) -> None:
    ids = {agent["name"]: agent["agent"] for agent in done.back("agent_spawn")}
    run_row = "SELECT pattern, state, outcome, score, summary FROM orchestration WHERE orchestration_id = ?"
    assert desk.rows(run_row, run) == [("consensus", "completed", "success", 0.8, "sqlite")]
    assert desk.rows("SELECT limit_usd_micros, limit_turns FROM account WHERE account_id = ?", run) == [(1_000_000, 20)]
    agents = "SELECT name, status FROM agent WHERE orchestration_id = ? AND name IN ('scout', 'critic') ORDER BY name"
    assert desk.rows(agents, run) == [("critic", "terminated"), ("scout", "terminated")]
    turns = "SELECT result, answered_by, cause_id FROM turn WHERE orchestration_id = ? AND state = 'done' ORDER BY n"
    (rule,), (emitted,) = done.back("routing_add_rule"), done.back("event_emit")
    assert [(result, who) for result, who, _ in desk.rows(turns, run)] == [
        ("[scout] What is there?", None),
        ("A single writer.", "operator"),
    ]
    assert desk.rows(turns, run)[1][2] == f"event:{emitted['event_id']}"
    (delivered,) = desk.facts("routing:delivered")
    assert (delivered["event"], delivered["rule_id"], delivered["target"]) == (
        "review:asked", rule["rule_id"], f"agent:{ids['critic']}"
    )  # fmt: skip
    assert desk.facts("review:asked") == [{"of": "sqlite — “one file”"}]
    decision = "SELECT pattern, decision, confidence, json_extract(context, '$.risk'), orchestration_id FROM decision"
    assert desk.rows(decision) == [("consensus", "sqlite", 0.9, "A single writer.", run)]
    library = desk.root / "home" / "compositions"
    (kept,) = library.rglob("consensus_decisions.yaml")
    assert [entry["decision"] for entry in safe_load(kept.read_text("utf-8"), what=kept.name)] == ["sqlite"]
    (forked,) = library.rglob("consensus_quick.yaml")
    document = safe_load(forked.read_text("utf-8"), what=forked.name)
    assert document["variables"]["max_rounds"]["default"] == 1
    assert document["lineage"]["parent"].startswith("consensus")
    living = "SELECT rule_id FROM rule WHERE deleted_at_ms IS NULL"
    assert desk.rows(living) == []  # the rules of the run have ended with it


async def test_a_prompt_is_a_command_of_its_user(open_desk: OpenDesk) -> None:
    async with open_desk(script("Understood.")) as desk:
        done = await desk.say("/mcp__ksi__orchestrate release consensus")
        assert {"mcp__ksi__orchestrate"} <= set(done.init["slash_commands"])
        (asked,) = [message["params"] for message in desk.wire() if message.get("method") == "prompts/get"]
        assert (asked["name"], asked["arguments"]) == ("orchestrate", {"goal": "release", "pattern": "consensus"})
        (told,) = [text for text in done.said if "Goal: release\n" in text]
        assert "Use the pattern 'consensus'" in told


async def test_a_goal_that_is_cut_at_its_spaces_still_reaches_the_model(open_desk: OpenDesk) -> None:
    async with open_desk(script("Understood.")) as desk:
        done = await desk.say("/mcp__ksi__orchestrate ship the release today")
        (asked,) = [message["params"] for message in desk.wire() if message.get("method") == "prompts/get"]
        assert asked["arguments"] == {"goal": "ship", "pattern": "the"}  # the rest is not sent at all
        (told,) = [text for text in done.said if "Goal: ship the ..." in text]
        assert "'the' names no composition" in told
        assert "Choose a pattern" in told
        assert "ship the release today" in "\n".join(done.said)  # the command as it was typed stands before it


async def test_nothing_runs_that_its_user_did_not_permit(open_desk: OpenDesk) -> None:
    spawn = {"agent_spawn": {"prompt": "You help.", "name": "helper"}}
    async with open_desk(script(select("agent_spawn"), spawn, "I may not.")) as desk:
        done = await desk.say("Make a helper.", allowed=False)
        assert [denied["tool_name"] for denied in done.result["permission_denials"]] == ["mcp__ksi__agent_spawn"]
        assert "tools/call" not in [message.get("method") for message in desk.wire()]
        assert desk.rows("SELECT name FROM agent") == []


async def test_a_client_killed_while_it_waits_loses_nothing(open_desk: OpenDesk) -> None:
    gate = Gate()
    slow = {"match": {"prompt": "How deep?"}, "reply": "Seven metres.", "latency_s": 1}
    first = script(
        select("agent_spawn", "agent_wait"),
        {"agent_spawn": {"name": "diver", "prompt": "You dive.", "message": "How deep?"}},
        {"agent_wait": {"turns": ["{{results[1].turn}}"], "timeout_s": 50}},
        prompt="Ask a diver",
    )
    second = script(
        select("agent_wait"),
        {"agent_wait": {"turns": ["{{groups[1]}}"], "timeout_s": 50}},
        "It is {{results[1].turns[0].text}}",
        prompt="/Go on with (t_\\w+)/",
    )
    replies = {"replies": [slow, *first["replies"], *second["replies"]]}
    async with open_desk(replies, clock=gate, worker="detached", provider="anthropic") as desk:
        client = await desk.begin("Ask a diver how deep it is.", "--allowedTools", "mcp__ksi")
        async with asyncio.timeout(PATIENCE_S):
            await gate.called.wait()  # the agent's model is at work
            while "agent_wait" not in desk.methods():  # noqa: ASYNC110  what is awaited is a file that grows
                await asyncio.sleep(0.01)
        client.send_signal(signal.SIGKILL)
        await client.wait()
        ((turn, state),) = desk.rows("SELECT turn_id, state FROM turn")
        assert state == "running"
        again = asyncio.create_task(desk.say(f"Go on with {turn}."))
        async with asyncio.timeout(PATIENCE_S):
            while desk.methods().count("agent_wait") < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        gate.open.set()
        assert (await again).result["result"] == "It is Seven metres."
        assert desk.rows("SELECT result FROM turn WHERE turn_id = ?", turn) == [("Seven metres.",)]
        assert [call.prompt for call in desk.sim.log].count("How deep?") == 1  # and was paid for once


async def test_a_person_goes_on_while_a_task_of_ours_waits(open_desk: OpenDesk) -> None:
    gate = Gate()
    ask = script(
        select("agent_spawn", "agent_wait"),
        {"agent_spawn": {"name": "diver", "prompt": "You dive.", "message": "How deep?"}},
        {"agent_wait": {"turns": ["{{results[1].turn}}"], "timeout_s": 50}},
        "I go on meanwhile.",
        prompt="Ask a diver",
    )
    slow = {"match": {"prompt": "How deep?"}, "reply": "Seven metres.", "latency_s": 1}
    told = {"match": {"prompt": "(ksi/agent_wait) completed"}, "reply": "It is seven metres."}
    async with open_desk({"replies": [slow, *ask["replies"], told]}, clock=gate, provider="anthropic") as desk:
        async with desk.terminal("Ask a diver how deep it is."), asyncio.timeout(PATIENCE_S):
            while "tasks/get" not in desk.methods():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert desk.rows("SELECT tool, status FROM task") == [("agent_wait", "working")]
            while not any(b"server-side task" in body for body in desk.heard):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            gate.open.set()
            while not any(b"(ksi/agent_wait) completed" in body for body in desk.heard):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await desk.sim.idle()
        done = Done(events=[], bodies=[json.loads(body) for body in desk.heard if b"mcp__ksi__" in body])
        handed_over = done.calls()[-1]
        assert handed_over[0] == "mcp__ksi__agent_wait"
        assert "started server-side task task_" in handed_over[1]
        (notice,) = [text for text in done.said if "(ksi/agent_wait) completed" in text]
        result = json.loads(re.findall(r"<result>\n(.*)\n</result>", notice)[0])
        assert [turn["text"] for turn in result["turns"]] == ["Seven metres."]
        assert desk.rows("SELECT status FROM task") == [("completed",)]


def lines_of(page: str) -> list[str]:
    """The commands by which a page of ours adds the server to Claude Code."""
    text = (PROJECT / page).read_text("utf-8")
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ claude mcp add ")]


async def test_what_our_pages_say_connects(open_desk: OpenDesk) -> None:
    added = lines_of("README.md")
    assert ["--transport" in line for line in added] == [False, True]
    added.append(added[1].replace("http ksi", "sse ksi").replace("/mcp", "/sse"))
    async with open_desk(script("Unused."), over="http") as desk:
        here, (base, _), bearer = desk.root / "user", desk.entry["url"].rsplit("/", 1), desk.entry["headers"]
        for path, command in {".venv/bin/ksi-mcp": SERVE[:3], "bin/claude": [desk.command]}.items():
            (here / path).parent.mkdir(parents=True)
            (here / path).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
            (here / path).chmod(0o755)
        desk.environ |= {
            "PATH": f"{here / 'bin'}:{desk.environ['PATH']}",
            "KSI_HOME": str(desk.root / "other"),
            "KSI_TOKEN": bearer["Authorization"].removeprefix("Bearer "),
        }

        def here_and_now(text: str) -> str:
            text = text.replace("http://127.0.0.1:8765", base).replace("Bearer TOKEN", bearer["Authorization"])
            return text.replace("/absolute/path/to/.venv", f"{here}/.venv").replace("/absolute/path/to", str(here))

        for number, line in enumerate(added):
            await desk.run("bash", "-c", here_and_now(line).replace(" ksi ", f" added{number} "))
        # A project brings its servers in .mcp.json; its user has to trust them once.
        examples = {
            name: json.loads(here_and_now((CLIENTS / f"{name}.json").read_text())) for name in ("mcp", "mcp-http")
        }
        servers = {name: example["mcpServers"]["ksi"] for name, example in examples.items()}
        (here / ".mcp.json").write_text(json.dumps({"mcpServers": servers}))
        (here / ".claude").mkdir()
        (here / ".claude" / "settings.local.json").write_text('{"enableAllProjectMcpServers": true}')
        shown = await desk.run("claude", "mcp", "list")
        connected = re.findall(r"^(\S+): .*Connected$", shown, re.MULTILINE)
        assert sorted(connected) == ["added0", "added1", "added2", "mcp", "mcp-http"], shown
