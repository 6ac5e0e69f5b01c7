"""Every tool is a command: real processes, real terminals, and what scripts and people see of it."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from ksi_mcp.app import App, AppOptions
from ksi_mcp.cli.escaping import exact_json, visible
from ksi_mcp.cli.twin import commands as twin
from ksi_mcp.cli.twin import groups
from ksi_mcp.cli.twin.arguments import Parameter, parameters_of, read
from ksi_mcp.cli.twin.explaining import example
from ksi_mcp.cli.twin.waits import fell_short
from ksi_mcp.config import Home
from ksi_mcp.errors import Invalid
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.tools.catalog import ALL_TOOLS
from ksi_mcp.tools.tool import Tool

ROOT = Path(__file__).parent.parent.parent
ENV = {
    **{
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ANTHROPIC_", "OPENAI_", "KSI_")) and name not in ("COLUMNS", "LINES", "NO_COLOR")
    },
    "PYTHONPATH": str(ROOT),
    "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
    "CLAUDE_CONFIG_DIR": "/nonexistent",
    "TERM": "xterm-256color",
}
PROGRAM = [sys.executable, "-m", "ksi_mcp"]
TOOLS = {tool.name: tool for tool in ALL_TOOLS}
COMMON = {"args", "home", "project", "json", "help", "yes", "until-done"}
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
HOSTILE = "a\x1b[2Jb\x9b31mc\x07d\u202ee\x7ff"


def ksi(
    *arguments: str, home: Path | None = None, stdin: str | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    given = {**ENV, **({"KSI_HOME": str(home)} if home else {}), **more}
    return subprocess.run(
        [*PROGRAM, *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        env=given,
        input=stdin,
        timeout=60,
        check=False,
    )


def scripted(home: Path, latency_s: float = 0) -> Path:
    home.mkdir(exist_ok=True)
    (home / "script.yaml").write_text(f"defaults: {{latency_s: {latency_s}}}\ndefault: {{reply: ok}}\n")
    script = "\nscripted: {script: script.yaml}" if latency_s else ""
    (home / "config.yaml").write_text(f"provider: scripted\nworker: {{idle_s: 0}}{script}\n")
    return home


def with_agents(home: Path, *names: str, latency_s: float = 0) -> Path:
    scripted(home, latency_s)

    async def spawn() -> None:
        async with App(Home(root=home), AppOptions(worker="none")) as app:
            for name in names:
                await app.toolbox.call(fresh_context(OPERATOR), "agent_spawn", {"name": name, "prompt": "x"})

    asyncio.run(spawn())
    return home


def at_a_terminal(home: Path, *arguments: str, answer: str = "", columns: int = 100) -> tuple[int, str]:
    """Run a command whose every end is a terminal; what it wrote there, and its exit code."""
    mine, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, columns))
    env = {**ENV, "KSI_HOME": str(home)}
    env.pop("COLUMNS", None)
    process = subprocess.Popen([*PROGRAM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    os.write(mine, answer.encode())
    said = b""
    with suppress(OSError):  # once the other end is closed
        while piece := os.read(mine, 65536):
            said += piece
    os.close(mine)
    return process.wait(60), said.decode()


def parameter(tool: str, name: str) -> Parameter:
    return next(each for each in parameters_of(TOOLS[tool]) if each.name == name)


# ------------------------------------------------------------------------- all of the declaration


def test_the_groups_are_the_first_words_of_the_tools() -> None:
    found = [twin.words_of(tool)[0] for tool in ALL_TOOLS]
    assert set(found) - {""} == set(groups.GROUPS)
    assert [tool.name for tool in ALL_TOOLS if not twin.words_of(tool)[0]] == ["help"]


@pytest.mark.parametrize("group", sorted(groups.GROUPS))
def test_every_tool_has_a_command_with_every_parameter(group: str) -> None:
    built: Any = get_command(twin.group_of(group))
    mine = {twin.words_of(tool)[1]: tool for tool in ALL_TOOLS if twin.words_of(tool)[0] == group}
    assert set(built.commands) == set(mine)
    for name, tool in mine.items():
        options = [word for each in built.commands[name].params for word in (*each.opts, *each.secondary_opts)]
        assert len(options) == len(set(options)), f"{tool.name}: {options}"
        wanted = {"--" + each.replace("_", "-") for each in (*tool.schema()["properties"], *tool.aliases)}
        assert wanted <= set(options), tool.name
        assert not wanted & {"--" + each for each in COMMON}, tool.name
        shown = {each.opts[0] for each in built.commands[name].params if not each.hidden}
        assert not {"--" + alias.replace("_", "-") for alias in tool.aliases} & shown


@pytest.mark.parametrize("tool", ALL_TOOLS, ids=lambda tool: tool.name)
def test_the_example_in_the_help_is_one_that_the_tool_takes(tool: Tool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "debate.yaml").write_text("name: debate\n")
    words = example(tool, parameters_of(tool))
    place, name = twin.words_of(tool)
    assert words[: 3 if place else 2] == ["ksi-mcp", *([place] if place else []), name]
    taken: list[dict[str, Any]] = []
    monkeypatch.setattr(twin, "_run", lambda tool, parameters, given: taken.append(dict(given)) or 0)
    built: Any = get_command(twin.group_of(place)) if place else None
    if built is None:
        return
    built.main(args=words[2:], standalone_mode=False)
    tool.validate(twin._arguments(tool, parameters_of(tool), taken[0]))


def test_the_help_of_a_command_says_all_there_is_to_say() -> None:
    said = ksi("agent", "send", "--help", COLUMNS="200").stdout
    for part in (
        "Give an agent a message; it becomes a turn.",
        "ksi-mcp agent send ada 'What is new?' --wait-s 50",
        "AGENT <TEXT>         agent id or name; or --agent  [required]",
        "--wait-s SECONDS",
        "[default: 0; 0..55]",
        "simple|analysis|code|multi_step",
        "Tool agent_send; command event agent:send, also agent:send_message, completion:async.",
        "Exit code 6",
    ):
        assert part in said
    for hidden in ("--target-agent", "--prompt"):
        assert hidden not in said
    assert "or --yes" not in said
    assert "--yes" in ksi("agent", "terminate", "--help").stdout
    listed = ksi("routing", "--help").stdout
    assert re.search(r"^  add-rule +Add a routing rule$", listed, re.MULTILINE)
    whole = ksi("--help").stdout
    assert all(re.search(rf"^  {name} +\S", whole, re.MULTILINE) for name in groups.GROUPS)
    assert all(re.search(rf"^ +{code}  \S", whole, re.MULTILINE) for code in groups.EXIT_CODES)


def test_help_loads_no_tool_and_a_command_loads_neither_the_protocol_nor_a_model() -> None:
    heavy = "{name.partition('.')[0] for name in sys.modules} & {'mcp', 'anthropic', 'httpx2', 'openai', 'uvicorn'}"
    code = "import sys; from ksi_mcp.__main__ import run; run({arguments!r}); print({wanted}, file=sys.stderr)"
    for arguments, wanted in (
        (["--help"], "'pydantic' in sys.modules or 'aiosqlite' in sys.modules"),
        (["agent", "--help"], f"bool({heavy} or 'rich' in sys.modules)"),
    ):
        program = code.format(arguments=arguments, wanted=wanted)
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=ENV, timeout=60, check=False
        )
        assert ended.stderr.strip() == "False", (arguments, ended.stderr)


# ------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("tool", "name", "words", "value"),
    [
        ("agent_send", "message", ["7"], "7"),
        ("agent_send", "message", ["@home"], "@home"),
        ("agent_send", "message", ['{"a": 1}'], {"a": 1}),
        ("agent_send", "message", ["[1]"], "[1]"),
        ("agent_send", "wait_s", ["2.5"], 2.5),
        ("agent_list", "limit", ["7"], 7),
        ("agent_wait", "turns", ["t_1", "t_2"], ["t_1", "t_2"]),
        ("agent_wait", "turns", ['["t_1", "t_2"]', "t_3"], ["t_1", "t_2", "t_3"]),
        ("agent_spawn", "vars", ["topic=x", "n=3", "ok=true", "s=a=b", "id=007"],
         {"topic": "x", "n": 3, "ok": True, "s": "a=b", "id": "007"}),
        ("agent_spawn", "vars", ['{"a": {"b": [1]}}', "c=null"], {"a": {"b": [1]}, "c": None}),
        ("agent_spawn", "budget", ["usd=0.5", "turns=3"], {"usd": 0.5, "turns": 3}),
        ("turn_move", "filter", ["turns=t_1", "turns=t_2"], {"turns": ["t_1", "t_2"]}),
        ("agent_list", "filter", ["composition=7"], {"composition": "7"}),
        ("routing_add_rule", "target", ["agent:ada"], "agent:ada"),
        ("routing_add_rule", "target", ["agent:ada", "task:done"], ["agent:ada", "task:done"]),
        ("routing_add_rule", "target", ['{"round_robin": ["agent:a"]}'], {"round_robin": ["agent:a"]}),
        ("routing_add_rule", "mapping", ["task={{data.id}}"], {"task": "{{data.id}}"}),
        ("routing_add_rule", "mapping", ["{{data}}"], "{{data}}"),
        ("routing_redrive", "ids", ["4", "[5, 6]"], [4, 5, 6]),
        ("composition_export", "names", ["debate"], ["debate"]),
        ("composition_import", "allow", ["true"], True),
        ("composition_import", "allow", ["one", "two"], ["one", "two"]),
        ("composition_track_decision", "confidence", ["0.5"], 0.5),
        ("composition_track_decision", "context", ["round=2"], {"round": 2}),
        ("composition_track_decision", "context", ["after two rounds"], "after two rounds"),
        ("completion_batch", "requests", ["agent=ada", "prompt=hi"][:1], [{"agent": "ada"}]),
    ],
)  # fmt: skip
def test_a_word_becomes_what_the_parameter_takes(tool: str, name: str, words: list[str], value: Any) -> None:
    assert read(parameter(tool, name), words) == value


@pytest.mark.parametrize(
    ("tool", "name", "words", "says"),
    [
        ("agent_list", "limit", ["many"], "--limit takes a whole number, not 'many'"),
        ("agent_list", "limit", ["1", "2"], "--limit is given 2 times"),
        ("agent_send", "wait_s", ["nan"], "takes a number"),
        ("agent_send", "wait_s", ["1e999"], "takes a number"),
        ("agent_send", "op_class", ["hard"], "cannot be 'hard'; one of simple, analysis, code, multi_step"),
        ("agent_get", "include", ["history", "all"], "cannot be 'all'"),
        ("agent_spawn", "vars", ["topic"], "takes an object, not 'topic'"),
        ("agent_spawn", "vars", ["@/no/such/file.json"], "cannot be read: No such file or directory"),
        ("agent_spawn", "vars", ["@a\0b"], "cannot be read"),
        ("agent_spawn", "vars", ["[" * 5000], "takes an object"),
        ("agent_spawn", "budget", ["usd=lots"], "--budget usd takes a number, not 'lots'"),
        ("agent_spawn", "budget", [HOSTILE], r"a\\x1b[2Jb"),
    ],
)
def test_what_it_does_not_take_is_said_with_the_value(tool: str, name: str, words: list[str], says: str) -> None:
    with pytest.raises(Invalid) as caught:
        read(parameter(tool, name), words)
    assert says in caught.value.text()
    assert not CONTROL.search(caught.value.text())


def test_objects_come_from_files_of_json_and_of_yaml_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "vars.json").write_text('{"topic": "tea"}')
    (tmp_path / "vars.yaml").write_text("topic: tea\nrounds: 3 # three\n")
    (tmp_path / "bad.json").write_text("{topic: tea}")
    (tmp_path / "raw.yaml").write_bytes(b"\xff\xfe")
    takes = parameter("agent_spawn", "vars")
    assert read(takes, [f"@{tmp_path}/vars.json", "rounds=2"]) == {"topic": "tea", "rounds": 2}
    assert read(takes, [f"@{tmp_path}/vars.yaml"]) == {"topic": "tea", "rounds": 3}
    with pytest.raises(Invalid, match="holds no JSON"):
        read(takes, [f"@{tmp_path}/bad.json"])
    with pytest.raises(Invalid, match="is not UTF-8"):
        read(takes, [f"@{tmp_path}/raw.yaml"])
    document = parameter("composition_create", "document")  # its comments are part of it
    assert read(document, [f"@{tmp_path}/vars.yaml"]) == "topic: tea\nrounds: 3 # three\n"
    changes = parameter("routing_apply", "changes")
    (tmp_path / "changes.json").write_text('[{"op": "delete", "rule_id": "r_1"}]')
    assert read(changes, [f"@{tmp_path}/changes.json", '{"op": "delete", "rule_id": "r_2"}']) == [
        {"op": "delete", "rule_id": "r_1"}, {"op": "delete", "rule_id": "r_2"}
    ]  # fmt: skip


# ----------------------------------------------------------------------------------- real processes


def test_agents_are_made_written_to_waited_for_and_read_without_their_parameters_names(tmp_path: Path) -> None:
    home = scripted(tmp_path / "home")
    made = ksi("agent", "spawn", "--name", "ada", "--prompt", "7", "--budget", "usd=1", "--json", home=home)
    assert (json.loads(made.stdout)["name"], made.returncode, made.stderr) == ("ada", 0, "")
    sent = ksi("agent", "send", "ada", "hello there", "--wait-s", "20", "--json", home=home)
    assert (json.loads(sent.stdout)["text"], sent.returncode) == ("[ada] hello there", 0)
    piped = ksi("agent", "send", "ada", "-", "--wait-s", "20", "--json", home=home, stdin="from a pipe\n")
    assert json.loads(piped.stdout)["text"] == "[ada] from a pipe"
    named = ksi("agent", "send", "--target-agent", "ada", "--content", "by other names", "--until-done", home=home)
    assert named.returncode == 0
    assert re.search(r"^text +\[ada\] by other names$", named.stdout, re.MULTILINE)
    waited = ksi("agent", "wait", "--agents", "ada", home=home)
    assert (waited.returncode, waited.stderr) == (0, "")
    assert "census: 1 of 1 ok\n" in waited.stdout
    assert re.search(r"^  turn +agent +agent_name +status +text", waited.stdout, re.MULTILINE)
    listed = ksi("agent", "list", home=home)
    assert listed.stdout.splitlines()[0].split()[:3] == ["agent", "name", "status"]
    assert "\x1b" not in listed.stdout + waited.stdout
    assert ksi("agent", "terminate", "ada", home=home).returncode == 0  # a script is asked nothing


def test_rules_decisions_and_patterns_have_their_commands(tmp_path: Path) -> None:
    home = with_agents(tmp_path / "home", "ada")
    rule = ksi("routing", "add-rule", "task:*", "agent:ada", "--mapping", "t={{data.id}}", "--no-enabled", "--rule-id",
               "mine", "--json", home=home)  # fmt: skip
    assert json.loads(rule.stdout)["rule_id"] == "mine"
    again = ksi("routing", "add-rule", "task:*", "agent:ada", "--rule-id", "mine", home=home)
    assert (again.returncode, again.stdout) == (4, "")
    changed = ksi("routing", "modify-rule", "mine", "--updates", "priority=7", "--updates", "enabled=true", home=home)
    assert re.search(r"^priority +7$", changed.stdout, re.MULTILINE)
    tracked = ksi("composition", "track-decision", "debate", "two rounds", "--confidence", "0.8", home=home)
    assert tracked.returncode == 0
    assert "two rounds" in ksi("decision", "query", "debate", home=home).stdout
    drawn = ksi("routing", "graph", "--args", '{"limit": 5}', home=home)
    assert "  flowchart LR" in drawn.stdout
    found = ksi("composition", "discover", "--type", "orchestration", "--limit", "2", home=home)
    assert found.stdout.count("orchestration") == 2
    assert "help" in ksi("help", home=home).stdout
    assert "agent_send" in ksi("help", "agent_send", home=home).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("agent", "send"), 2, "missing AGENT, MESSAGE; see `ksi-mcp agent send --help`"),
        (("agent", "send", "ada", "hi", "--agent", "bob"), 2, "--agent and AGENT are the same parameter"),
        (("agent", "send", "ada", "hi", "--to", "bob", "--agent-id", "b"), 2, "are the same parameter"),
        (("agent", "send", "ada", "hi", "--args", '{"agent": "b"}'), 2, "AGENT is in --args too"),
        (("agent", "send", "ada", "hi", "--wait-s", "90"), 2, "less than or equal to 55"),
        (("agent", "get", "nobody"), 2, "unknown agent 'nobody'"),
        (("agent", "lst"), 2, "Did you mean 'list'?; see `ksi-mcp agent --help`"),
        (("agnt", "list"), 2, "Did you mean 'agent'?; see `ksi-mcp --help`"),
        (("agent", "list", "--limt", "3"), 2, "--limt"),
        (("routing", "add-rule", "a:b", "system:x"), 3, "only the server emits it"),
        (("event", "emit", "agent:wait", "--data", '{"turns": []}'), 2, "needs turns or agents"),
        (("event", "wait", "note:made", "--timeout-s", "0"), 6, ""),
        (("composition", "get", HOSTILE.replace("\x00", "")), 2, r"\x1b[2Jb"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(
    tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    home = scripted(tmp_path / "home")
    ended = ksi(*arguments, home=home)
    assert (ended.returncode, says in ended.stderr) == (code, True), ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert not CONTROL.search(ended.stderr)
    if code != groups.EXIT_PARTIAL:
        exact = ksi(*arguments, "--json", home=home)
        assert json.loads(exact.stdout)["error"]["message"]


def test_a_wait_that_comes_up_short_ends_with_6_and_can_be_gone_on_with(tmp_path: Path) -> None:
    home = with_agents(tmp_path / "home", "ada", latency_s=1.5)
    short = ksi("agent", "send", "ada", "hi", "--wait-s", "0.1", "--json", home=home)
    assert (short.returncode, json.loads(short.stdout)["status"] in ("queued", "running")) == (6, True)
    turn = json.loads(short.stdout)["turn"]
    called = ksi("call", "agent_wait", f'turns=["{turn}"]', "timeout_s=0", "--json", home=home)
    assert (called.returncode, json.loads(called.stdout)["census"]["pending"]) == (6, 1)
    assert ksi("agent", "send", "ada", "no wait was asked for", home=home).returncode == 0
    whole = ksi("agent", "wait", turn, "--until-done", home=home)
    assert (whole.returncode, "census: 1 of 1 ok" in whole.stdout) == (0, True)


def test_a_failed_turn_is_no_success_of_the_wait() -> None:
    census = {"asked": 2, "ok": 1, "failed": 1, "cancelled": 0, "timed_out": 0, "pending": 0}
    assert fell_short(TOOLS["agent_wait"], {}, {"census": census, "partial": False})
    assert not fell_short(TOOLS["agent_wait"], {}, {"census": census | {"ok": 2, "failed": 0}, "partial": False})
    assert fell_short(TOOLS["agent_send"], {"wait_s": 1}, {"status": "failed"})
    assert not fell_short(TOOLS["agent_send"], {}, {"status": "queued"})
    planned = {"planned": 2, "passed": 2, "failed": 0, "unjudged": 0, "running": 0, "not_run": 0}
    assert not fell_short(TOOLS["composition_evaluate"], {}, {"census": planned})
    assert fell_short(TOOLS["composition_evaluate"], {}, {"census": planned | {"passed": 1, "not_run": 1}})


def test_who_breaks_a_wait_off_is_told_how_to_go_on(tmp_path: Path) -> None:
    home = with_agents(tmp_path / "home", "ada", latency_s=2)
    command = [*PROGRAM, "agent", "send", "ada", "hi", "--wait-s", "50"]
    pipe = subprocess.PIPE
    waiting = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**ENV, "KSI_HOME": str(home)})
    until_s = time.monotonic() + 30
    while "running" not in ksi("agent", "wait", "--agents", "ada", "--timeout-s", "0", home=home).stdout:
        assert time.monotonic() < until_s
    waiting.send_signal(signal.SIGINT)
    said, hint = waiting.communicate(timeout=30)
    assert (waiting.returncode, said) == (130, "")
    assert "nothing was lost" in hint
    assert "Traceback" not in hint
    shown = re.search(r"`ksi-mcp (.*)` waits again", hint)
    assert shown is not None
    assert ksi(*shlex.split(shown[1]), "--until-done", home=home).returncode == 0


def test_whoever_reads_may_have_left(tmp_path: Path) -> None:
    home = scripted(tmp_path / "home")
    for extra in ("", " --json"):
        line = f"{shlex.join(PROGRAM)} help{extra} | true; echo ${{PIPESTATUS[0]}}"
        ended = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, env={**ENV, "KSI_HOME": str(home)}, check=False
        )
        assert (ended.stdout.strip(), ended.stderr) == ("141", "")


# ---------------------------------------------------------------------------------------- terminals


def test_nothing_that_an_agent_says_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    home = with_agents(tmp_path / "home", "ada")
    exact = ksi("agent", "send", "ada", HOSTILE, "--wait-s", "20", "--json", home=home)
    assert json.loads(exact.stdout)["text"] == f"[ada] {HOSTILE}"
    assert not CONTROL.search(exact.stdout.strip())
    for arguments in (("agent", "history", "ada"), ("event", "query"), ("events",), ("call", "event_query")):
        said = ksi(*arguments, home=home).stdout
        assert "b" in said
        assert not CONTROL.search(said), arguments
    code, screen = at_a_terminal(home, "agent", "history", "ada")
    assert code == 0
    assert r"a\x1b[2Jb\x9b31mc\x07d\u202ee\x7ff" in screen
    assert not CONTROL.search(re.sub(r"\x1b\[[0-9;]*m|\r", "", screen))


def test_escaped_json_is_the_same_json() -> None:
    value = {HOSTILE: [HOSTILE, "\ud800", "\U000e0041", "plain", 1]}
    assert json.loads(exact_json(value)) == value
    assert visible("two\nlines\tof text") == "two\nlines\tof text"
    assert visible("\x1b") == r"\x1b"


def test_what_a_stream_cannot_show_is_written_out_and_no_failure(tmp_path: Path) -> None:
    home = with_agents(tmp_path / "home", "ada")
    for arguments in (("event", "emit", "note:made", "--data", "text=grüße 世界"), ("event", "query")):
        for encoding in ("ascii", "latin-1"):
            exact = ksi(*arguments, "--json", home=home, PYTHONIOENCODING=encoding)
            assert (exact.returncode, json.loads(exact.stdout) is not None) == (0, True)
            assert ksi(*arguments, home=home, PYTHONIOENCODING=encoding).returncode == 0
    asked = ksi("agent", "get", "世界", home=home, PYTHONIOENCODING="ascii")
    assert (asked.returncode, r"\u4e16" in asked.stderr) == (2, True)


def test_a_terminal_gets_a_table_that_fits_it(tmp_path: Path) -> None:
    home = with_agents(tmp_path / "home", "ada", "bob")
    for columns in (100, 60):
        code, screen = at_a_terminal(home, "agent", "list", columns=columns)
        lines = re.sub(r"\x1b\[[0-9;]*m", "", screen).replace("\r", "").splitlines()
        assert code == 0
        assert all(len(line) <= columns for line in lines)
        row = next(line for line in lines if " ada " in line)
        assert re.match(r" a_\w{10} ", row)  # ids stay whole
        assert " status " in lines[0]


def test_a_terminal_sees_how_far_a_wait_is_and_a_pipe_does_not(tmp_path: Path) -> None:
    home = with_agents(tmp_path / "home", "ada", latency_s=1)
    code, screen = at_a_terminal(home, "agent", "send", "ada", "hi", "--wait-s", "30")
    assert (code, "0 of 1 turns have ended" in screen) == (0, True)
    assert ksi("agent", "send", "ada", "hi", "--wait-s", "30", home=home).stderr == ""


def test_ending_something_is_asked_about_on_a_terminal_unless_yes_is_said(tmp_path: Path) -> None:
    home = with_agents(tmp_path / "home", "ada", "bob", "eve")
    code, screen = at_a_terminal(home, "agent", "terminate", "ada", answer="n\n")
    assert (code, "End agents (agent ada)?" in screen, "nothing was changed" in screen) == (3, True, True)
    emitted = ("event", "emit", "agent:terminate", "--data", "agent=ada")
    assert at_a_terminal(home, *emitted, answer="n\n")[0] == 3
    nested = ("event", "emit", "event:emit", "--data", '{"event": "agent:terminate", "data": {"agent": "ada"}}')
    assert at_a_terminal(home, *nested, answer="n\n")[0] == 3
    assert at_a_terminal(home, "agent", "terminate", "ada", answer="\x04")[0] == 130
    assert len(json.loads(ksi("agent", "list", "--json", home=home).stdout)["agents"]) == 3
    assert at_a_terminal(home, "agent", "terminate", "ada", "--dry-run")[0] == 0
    assert at_a_terminal(home, "agent", "terminate", "ada", answer="y\n")[0] == 0
    assert at_a_terminal(home, "agent", "terminate", "bob", "--yes")[0] == 0
    assert len(json.loads(ksi("agent", "list", "--json", home=home).stdout)["agents"]) == 1
