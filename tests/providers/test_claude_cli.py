from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.clock import Clock, SystemClock
from ksi_mcp.config import Home
from ksi_mcp.errors import Conflict, ProviderError
from ksi_mcp.permissions import Slot, agent_actor, fresh_context
from ksi_mcp.provider_config import ClaudeCliConfig
from ksi_mcp.providers import guard
from ksi_mcp.providers.base import Answer, Behalf, Message, Request, ToolSpec
from ksi_mcp.providers.claude.cli import ClaudeCliProvider, any_running, end_recorded
from ksi_mcp.providers.door import Grant
from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.testing import FakeClock
from ksi_mcp.unguarded import unguarded
from ksi_mcp.web.sim import SimServer

FAKE = Path(__file__).with_name("fake_claude.py")
MODEL = "claude-haiku-5-5"
LOOK = ToolSpec(name="look", description="", input_schema={"type": "object"})


class Doorman:
    """A door that only notes who comes and goes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.taken_over: Callable[[], None] = lambda: None

    async def admit(self, agent_id: str, tools: tuple[ToolSpec, ...]) -> Grant:
        self.notes.append(f"admit {agent_id} {[tool.name for tool in tools]}")
        return Grant(url="http://127.0.0.1:9/mcp", token="canary-token-of-the-door")

    def enter(self, token: str, behalf: Behalf, taken_over: Callable[[], None]) -> None:
        self.notes.append("enter")
        self.taken_over = taken_over

    async def leave(self, token: str) -> None:
        self.notes.append("leave")

    def close(self, token: str) -> None:
        self.notes.append("close")

    async def aclose(self) -> None:
        self.notes.append("aclose")


def behalf(agent_id: str = "a_1", tools: tuple[ToolSpec, ...] = ()) -> Behalf:
    slot = Slot(turn_id="t_1", attempt=1, owner="w_1", round=1, index=0)  # type: ignore[arg-type]
    ctx = fresh_context(agent_actor(agent_id))
    resting: Callable[[], AbstractContextManager[None]] = nullcontext
    return Behalf(ctx=type(ctx)(actor=ctx.actor, root_id=ctx.root_id, slot=slot), tools=tools, resting=resting)


@dataclass
class Talk:
    """A conversation with one agent, as the worker would keep it."""

    provider: ClaudeCliProvider
    agent_id: str = "a_1"
    system: str = "You are Ada."
    model: str = MODEL
    tools: tuple[ToolSpec, ...] = ()
    messages: list[Message] = field(default_factory=list)
    last: Answer | None = None
    streamed: str = ""

    async def say(self, text: str, *, deadline_s: float = 30, **more: Any) -> Answer:
        self.streamed = ""
        asked = Message(role="user", blocks=(text,))
        request = Request(
            model=self.model,
            system=self.system,
            messages=(*self.messages, asked),
            session=None if self.last is None else self.last.session,
            behalf=behalf(self.agent_id, self.tools),
            **more,
        )
        self.last = await self.provider.complete(request, deadline_s=deadline_s, on_text=self._heard)
        self.messages += [asked, Message(role="assistant", blocks=(self.last.text,))]
        return self.last

    async def fails(self, text: str, **more: Any) -> ProviderError:
        with pytest.raises(ProviderError) as caught:
            await self.say(text, **more)
        return caught.value

    def _heard(self, text: str) -> None:
        self.streamed += text


Opened = Callable[..., Any]


@pytest.fixture
def fake(tmp_path: Path) -> Opened:
    """`async with fake() as provider`: on a program that misbehaves when told to."""
    program = tmp_path / "claude"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{FAKE}" "$@"\n')
    program.chmod(0o755)

    @asynccontextmanager
    async def opened(
        door: Doorman | None = None, environ: dict[str, str] | None = None, clock: Clock | None = None, **config: Any
    ) -> AsyncIterator[ClaudeCliProvider]:
        chosen = ClaudeCliConfig(**{"command": str(program), **config})
        given = {"PATH": os.environ["PATH"], **(environ or {})}
        provider = ClaudeCliProvider(chosen, tmp_path / "data", door, given, clock or SystemClock())
        try:
            yield provider
        finally:
            await provider.aclose()
            assert left_over(tmp_path) == []

    return opened


def left_over(tmp_path: Path) -> list[str]:
    """Records, prompts and processes that are still there."""
    own = tmp_path / "data" / "claude_cli"
    files = [path.name for folder in ("processes", "prompts") for path in (own / folder).glob("*")]
    return files + [str(pid) for pid in programs(tmp_path)]


def programs(tmp_path: Path) -> list[int]:
    """The processes that work below this folder; zombies have no cwd."""
    found = []
    for entry in Path("/proc").glob("[0-9]*") if Path("/proc/self").exists() else ():
        try:
            if (entry / "cwd").readlink().is_relative_to(tmp_path / "data"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


# ------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("prompt", "known", "words"),
    [
        ("DIE", ("server", "unknown", ""), "exit code 7"),
        ("ORPHAN", ("server", "unknown", ""), "exit code 3"),
        ("HALF", ("server", "unknown", "half an ans"), "exit code -9"),
        ("LINE", ("server", "unknown", ""), "a line of more than 16,777,216 bytes"),
        ("FLOOD", ("server", "unknown", ""), "more than 67,108,864 bytes in one turn"),
        ("PROSE", ("server", "unknown", ""), "here is prose about [key]"),
        ("QUIET", ("server", "unknown", ""), "ended without an answer"),
        ("OPTION", ("request", "no", ""), "unknown option '--restricted'; update it: claude update"),
    ],
)
async def test_a_process_that_goes_wrong_is_classified_and_gone(fake, prompt, known, words) -> None:
    async with fake() as provider:
        error = await Talk(provider).fails(prompt)
        assert (error.kind, error.billed, error.partial_text) == known
        assert words in error.text()
        assert provider._processes.count == 0


@pytest.mark.parametrize(("prompt", "partial"), [("HANG", ""), ("DEAF", "I hear nothing"), ("TREE", "three of us")])
async def test_a_turn_that_takes_too_long_ends_with_all_its_processes(fake, tmp_path, prompt, partial) -> None:
    async with fake() as provider:
        error = await Talk(provider).fails(prompt, deadline_s=1)
        assert (error.kind, error.billed, error.partial_text) == ("timeout", "unknown", partial)
        assert left_over(tmp_path) == []


async def test_a_cancelled_turn_leaves_nobody_of_its_tree(fake, tmp_path) -> None:
    async with fake(keep_s=0) as provider:
        talk = Talk(provider)
        turn = asyncio.create_task(talk.say("TREE"))
        while not talk.streamed:  # noqa: ASYNC110  it says so once its children are there
            await asyncio.sleep(0.01)
        pids = json.loads(next(tmp_path.rglob("pids")).read_text())
        assert len(pids) == 3
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn
        await provider.aclose()
        assert [pid for pid in pids if guard.started(pid) is not None and pid in programs(tmp_path)] == []


async def test_noise_on_both_pipes_is_passed_over(fake) -> None:
    async with fake() as provider:
        talk = Talk(provider)
        assert (await talk.say("CHATTER")).text == "still fine"
        assert talk.streamed == "still fine"


async def test_a_question_that_only_a_person_could_answer_is_declined(fake) -> None:
    async with fake() as provider:
        assert (await Talk(provider).say("ASK")).text == "nobody is there to ask"


async def test_a_program_that_is_not_there_costs_nothing(fake) -> None:
    async with fake(command="/nowhere/claude") as provider:
        error = await Talk(provider).fails("hello")
        assert (error.kind, error.billed) == ("request", "no")
        assert "install Claude Code" in error.text()
        assert await provider.status() == (False, error.text())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"effort": "huge"}, "no effort 'huge'; one of low"),
        ({"output_schema": {"x": "y" * 200_000}}, "output schema has 200,"),
    ],
)
async def test_what_it_cannot_take_is_refused_before_anything_runs(fake, tmp_path, more, words) -> None:
    async with fake() as provider:
        error = await Talk(provider).fails("hello", **more)
        assert (error.kind, error.billed) == ("request", "no")
        assert words in error.text()
        assert left_over(tmp_path) == []


async def test_nothing_runs_while_a_server_without_a_token_could_be_reached(fake, tmp_path) -> None:
    async with fake() as provider:
        (tmp_path / "data").mkdir(exist_ok=True)
        with unguarded(Home(root=tmp_path / "data"), any_running=lambda: False):
            error = await Talk(provider).fails("hello")
            assert (error.kind, error.billed) == ("request", "no")
            assert "without --no-auth" in error.text()
            with (
                pytest.raises(Conflict, match="another server without a token"),
                unguarded(Home(root=tmp_path / "data"), any_running=lambda: False),
            ):
                pass
        assert (await Talk(provider).say("hello")).text


async def test_no_server_without_a_token_begins_while_a_process_could_reach_it(fake, tmp_path) -> None:
    data = tmp_path / "data"
    async with fake() as provider:
        assert not any_running(data)
        assert (await Talk(provider).say("hello")).text  # its process is kept for the next turn
        with (
            pytest.raises(Conflict, match="runs as a process"),
            unguarded(Home(root=data), any_running=lambda: any_running(data)),
        ):
            pass
        assert (await Talk(provider).say("hello")).text  # and goes on as before
    with unguarded(Home(root=data), any_running=lambda: any_running(data)):
        pass


@pytest.mark.parametrize("model", ["", "--dangerously-skip-permissions", "a b", "a\0b", "\ud800", "x" * 300])
async def test_a_model_is_a_name_and_no_option(fake, model) -> None:
    async with fake() as provider:
        error = await Talk(provider, model=model).fails("hello")
        assert (error.kind, error.billed) == ("request", "no")


# --------------------------------------------------------------- what a process is given and keeps


async def test_no_credential_and_no_prompt_is_an_argument_and_no_stranger_in_the_environment(fake) -> None:
    environ = {"ANTHROPIC_API_KEY": "sk-canary-one", "OTHER": "canary-two", "WANTED": "yes", "LC_ALL": "C"}
    environ["KSI_HOME"] = "/canary/folder"  # a shell of the process would be the operator there
    async with fake(Doorman(), environ, env=("WANTED",), tools=("Read",)) as provider:
        answer = await Talk(provider, system="canary system", tools=(LOOK,)).say("ARGS canary prompt")
    arguments, given = json.loads(answer.text)
    assert "canary" not in " ".join(arguments)
    assert "Bearer ${KSI_AGENT_TOKEN}" in " ".join(arguments)
    assert arguments[arguments.index("--allowedTools") + 1] == "mcp__ksi,Read"
    assert given["KSI_AGENT_TOKEN"] == "canary-token-of-the-door"
    assert given["KSI_AGENT_URL"] == "http://127.0.0.1:9/mcp"
    assert (given["WANTED"], given["LC_ALL"], given["NO_PROXY"]) == ("yes", "C", "127.0.0.1,localhost")
    assert not {"ANTHROPIC_API_KEY", "OTHER", "KSI_HOME"} & set(given)


async def test_the_door_is_open_in_a_turn_only(fake) -> None:
    door = Doorman()
    async with fake(door) as provider:
        talk = Talk(provider, tools=(LOOK,))
        await talk.say("one")
        await talk.say("two")
        assert door.notes == ["admit a_1 ['look']", "enter", "leave", "enter", "leave"]
        await talk.fails("DIE")
        assert door.notes[5:] == ["enter", "leave", "close"]
        await Talk(provider, agent_id="a_2").say("no tools, no door")
        assert len(door.notes) == 8


async def test_a_turn_that_was_taken_over_ends_its_process(fake) -> None:
    door = Doorman()
    async with fake(door) as provider:
        talk = Talk(provider, tools=(LOOK,))
        turn = asyncio.create_task(talk.fails("TREE"))
        while not talk.streamed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        door.taken_over()
        assert "belongs to somebody else" in (await turn).text()
        assert provider._processes.count == 0
        assert door.notes[-1] == "close"


async def pid_of(talk: Talk) -> int | None:
    kept = talk.provider._kept.get(talk.agent_id)
    return None if kept is None else kept.process.pid


async def test_a_kept_process_goes_on_only_where_it_stands(fake) -> None:
    async with fake() as provider:
        talk = Talk(provider)
        await talk.say("one")
        first = await pid_of(talk)
        await talk.say("two")
        assert await pid_of(talk) == first
        talk.messages.append(Message(role="user", blocks=("said elsewhere",)))
        await talk.say("three")
        second = await pid_of(talk)
        assert second != first
        talk.system = "You are Eve."
        await talk.say("four")
        assert await pid_of(talk) not in (first, second)
        assert provider._processes.count == 1


async def test_a_process_waits_for_its_agent_no_longer_than_configured(fake) -> None:
    clock = FakeClock()
    async with fake(clock=clock, keep_s=60) as provider:
        await Talk(provider).say("one")
        await clock.advance(0)  # it has begun to wait
        await clock.advance(59)
        assert provider._processes.count == 1
        await clock.advance(2)
        while provider._processes.count:  # noqa: ASYNC110  a process takes a moment to end
            await asyncio.sleep(0.01)


async def test_whoever_has_waited_longest_makes_room(fake) -> None:
    async with fake(processes=2) as provider:
        talks = [Talk(provider, agent_id=f"a_{n}") for n in range(3)]
        for talk in talks:
            await talk.say("one")
        assert [await pid_of(talk) is None for talk in talks] == [True, False, False]
        assert provider._processes.count == 2


async def test_no_more_processes_than_the_cap_even_if_more_turns_come(fake) -> None:
    async with fake(processes=2) as provider:
        most = 0

        async def turn(number: int) -> None:
            nonlocal most
            await Talk(provider, agent_id=f"a_{number}").say("one")
            most = max(most, provider._processes.count)

        await asyncio.gather(*(turn(number) for number in range(6)))
        assert most <= 2


async def test_a_process_that_has_spent_a_tenth_of_its_cap_is_not_kept_for_another_turn(fake) -> None:
    async with fake(max_usd_per_turn=0.005) as provider:
        talk = Talk(provider)
        await talk.say("one")  # says that it cost 0.001
        first = await pid_of(talk)
        await talk.say("two")
        assert await pid_of(talk) != first


# ------------------------------------------------------------------------------- the real program


@contextmanager
def nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert left_over(tmp_path) == []


@pytest.fixture
def real(tmp_path: Path, claude_code) -> Opened:
    """`async with real(script) as (provider, sim)`: Claude Code against a Messages API that answers from a script."""

    @asynccontextmanager
    async def opened(
        script: dict[str, Any] | None = None, **config: Any
    ) -> AsyncIterator[tuple[Callable[[], ClaudeCliProvider], SimServer]]:
        spec = {"default": {"reply": "[{{model}}|{{system}}] {{turn}}: {{prompt}}"}, **(script or {})}
        async with SimServer(Script(parse_script(spec))) as sim:
            chosen = ClaudeCliConfig(**{"command": claude_code.command, "env": claude_code.passed, **config})
            environ = claude_code.environ(tmp_path / "home", sim.url)
            made: list[ClaudeCliProvider] = []

            def make() -> ClaudeCliProvider:
                made.append(ClaudeCliProvider(chosen, tmp_path / "data", None, environ, SystemClock()))
                return made[-1]

            with nothing_left(tmp_path):
                yield make, sim
                for provider in made:
                    await provider.aclose()

    return opened


def cost_of(answer: Answer) -> int:
    """By the price table of the program: a dollar for ten million tokens in, half a dollar for a million out."""
    return round(answer.usage.input_tokens * 0.1 + answer.usage.output_tokens * 0.5)


async def test_claude_code_answers_streams_and_counts(real) -> None:
    async with real() as (make, sim):
        provider = make()
        assert await provider.status() == (True, f"{provider._config.command} is there and logged in (api_key)")
        talk = Talk(provider)
        answer = await talk.say("Who are you?", effort="low")
        assert "You are Ada." in answer.text
        assert answer.text.endswith("1: Who are you?")
        assert (talk.streamed, answer.model, answer.stop_reason) == (answer.text, MODEL, "end_turn")
        assert answer.usage.input_tokens > 0
        assert abs((answer.cost_usd_micros or 0) - cost_of(answer)) <= 1
        assert len(sim.log) == 1


async def test_costs_are_booked_as_differences_warm_resumed_and_after_a_kill(real) -> None:
    async with real() as (make, sim):
        talk = Talk(make())
        answers = [await talk.say("one")]
        first = await pid_of(talk)
        answers.append(await talk.say("two"))
        assert await pid_of(talk) == first
        await talk.provider.aclose()

        talk.provider = make()
        talk.system = "You are Eve."  # what it is now reaches the model, whatever the session began with
        answers.append(await talk.say("three"))
        assert "You are Eve." in answers[-1].text
        assert answers[-1].text.endswith("3: three")
        (kept,) = talk.provider._kept.values()
        os.kill(kept.process.pid, signal.SIGKILL)  # its session will begin to count anew
        await kept.process._running.process.wait()

        answers.append(await talk.say("four"))
        assert answers[-1].text.endswith("4: four")
        assert [abs((answer.cost_usd_micros or 0) - cost_of(answer)) <= 2 for answer in answers] == [True] * 4
        assert len(sim.log) == 4


async def test_the_bound_on_answers_is_one_of_a_turn(real) -> None:
    script = {"replies": [{"match": {"prompt": "/^loop/"}, "tool_calls": [{"name": "nothing"}]}]}
    async with real(script, model_turns=2) as (make, _):
        talk = Talk(make())
        for number in range(4):
            assert (await talk.say(str(number))).text.endswith(f": {number}")
        error = await talk.fails("loop")
        assert (error.kind, error.billed) == ("request", "unknown")
        assert "model_turns" in error.text()


async def test_after_ten_turns_another_program_is_told_every_one_of_them(real) -> None:
    async with real({"default": {"reply": "{{prompt}}"}}) as (make, sim):
        talk = Talk(make())
        for number in range(10):
            talk.messages += [
                Message(role="user", blocks=(f"question {number}",)),
                Message(role="assistant", blocks=(f"answer {number}",)),
            ]
        told = (await talk.say("the last")).text
        places = [told.index(f"{kind} {number}") for number in range(10) for kind in ("question", "answer")]
        assert places == sorted(places)
        assert told.endswith("the last")
        assert (await talk.say("more")).text == "more"
        assert len(sim.log) == 2


async def test_a_session_that_is_gone_is_told_anew(real) -> None:
    async with real({"default": {"reply": "{{prompt}}"}}) as (make, sim):
        talk = Talk(make())
        await talk.say("one")
        await talk.provider.aclose()
        assert talk.last is not None
        session = {**(talk.last.session or {}), "id": "00000000-0000-4000-8000-00000000dead"}
        talk.last = Answer(text="", model="", stop_reason="end_turn", session=session)
        talk.provider = make()
        answer = await talk.say("two")
        assert answer.text.index("one") < answer.text.index("two")
        assert abs((answer.cost_usd_micros or 0) - cost_of(answer)) <= 1
        assert len(sim.log) == 2


async def test_a_prompt_reads_no_file_and_runs_no_command(real, tmp_path) -> None:
    (tmp_path / "secret.txt").write_text("canary of the file")
    async with real({"default": {"reply": "{{prompt}}"}}) as (make, _):
        talk = Talk(make())
        mentioned = f"see @{tmp_path}/secret.txt"
        assert (await talk.say(mentioned)).text == mentioned
        assert (await talk.say(f"/cost @{tmp_path}/secret.txt")).text == f" /cost @{tmp_path}/secret.txt"
        assert (await talk.say("!cat secret.txt")).text == "!cat secret.txt"


async def test_settings_and_memories_of_the_user_take_no_part(real, tmp_path) -> None:
    async with real({"default": {"reply": "{{prompt}}"}}) as (make, _):
        place = tmp_path / "home" / "claude"
        place.mkdir(parents=True)
        hook = {"hooks": [{"type": "command", "command": f"touch {tmp_path}/hooked"}]}
        (place / "settings.json").write_text(json.dumps({"hooks": {"UserPromptSubmit": [hook]}, "model": "opus"}))
        (place / "CLAUDE.md").write_text("canary of the memory")
        work = tmp_path / "data" / "claude_cli" / "work" / "a_1"
        work.mkdir(parents=True)
        (work / "CLAUDE.md").write_text("canary of the folder")
        answer = await Talk(make()).say("hello")
        assert (answer.text, answer.model) == ("hello", MODEL)
        assert not (tmp_path / "hooked").exists()


async def test_a_turn_that_was_cut_off_leaves_no_trace_in_the_conversation(real) -> None:
    script = {"replies": [{"match": {"prompt": "/^linger/"}, "reply": "late", "latency_s": 60}]}
    async with real(script) as (make, _):
        talk = Talk(make())
        await talk.say("one")
        before = talk.last
        assert (await talk.fails("linger", deadline_s=1.5)).kind == "timeout"
        talk.last = before
        assert (await talk.say("two")).text.endswith("2: two")


@pytest.mark.parametrize(
    ("fail", "kind", "billed", "calls"),
    [
        ({"kind": "rate", "retry_after_s": 2}, "rate", "no", 1),
        ({"kind": "overload"}, "overload", "no", 1),
        ({"kind": "server", "status": 500}, "server", "no", 1),
        ({"kind": "auth"}, "auth", "no", 1),
        ({"kind": "budget"}, "budget", "no", 1),
        ({"kind": "drop"}, "transport", "unknown", 1),
        ({"kind": "mid_stream", "status": 529, "after_chars": 6}, "overload", "unknown", 1),
    ],
)
async def test_what_the_api_refuses_is_not_tried_again_behind_our_back(real, fail, kind, billed, calls) -> None:
    async with real({"replies": [{"reply": "words and words", "fail": fail}]}) as (make, sim):
        error = await Talk(make()).fails("hello")
        assert (error.kind, error.billed) == (kind, billed)
        assert len(sim.log) == calls
        assert error.partial_text == ("words " if fail["kind"] == "mid_stream" else "")
        if kind == "rate":
            assert error.retry_after_s is not None
            assert 1.9 < error.retry_after_s < 3


async def test_it_stops_after_the_call_that_crosses_its_cap(real) -> None:
    async with real({"default": {"reply": "x" * 400}}, max_usd_per_turn=0.000_01) as (make, sim):
        error = await Talk(make()).fails("hello")
        assert (error.kind, error.billed) == ("budget", "unknown")
        assert "max_usd_per_turn" in error.text()
        assert len(sim.log) == 1


async def test_without_a_login_it_says_how_to_get_one(tmp_path, claude_code) -> None:
    environ = claude_code.environ(tmp_path / "home", "http://127.0.0.1:9")
    config = ClaudeCliConfig(command=claude_code.command)  # the key is not among what is passed on
    provider = ClaudeCliProvider(config, tmp_path / "data", None, environ, SystemClock())
    error = await Talk(provider).fails("hello")
    assert (error.kind, error.billed) == ("auth", "no")
    assert "claude setup-token" in error.text()
    found, why = await provider.status()
    assert not found
    assert "not logged in" in why
    await provider.aclose()


async def test_an_object_that_is_asked_for_is_what_comes_back(real) -> None:
    call = {"name": "StructuredOutput", "input": {"name": "Ada"}}
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    script = {"replies": [{"match": {"round": 1}, "tool_calls": [call]}], "default": {"reply": "done"}}
    async with real(script) as (make, _):
        assert (await Talk(make()).say("Who?", output_schema=schema)).text == '{"name": "Ada"}'


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc on this machine")
async def test_what_it_has_started_ends_with_it(real, tmp_path) -> None:
    call = {"name": "Bash", "input": {"command": "sleep 300", "description": "wait"}}
    async with real({"replies": [{"tool_calls": [call]}]}, tools=("Bash",)) as (make, sim):
        turn = asyncio.create_task(Talk(make()).say("sleep"))
        async with asyncio.timeout(20):
            while b"sleep\x00300\x00" not in commands(tmp_path):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn
        async with asyncio.timeout(5):
            while programs(tmp_path):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert len(sim.log) == 1


def commands(tmp_path: Path) -> list[bytes]:
    found = []
    for pid in programs(tmp_path):
        with suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return found


WORKER = """
import asyncio, json, sys
from pathlib import Path
from ksi_mcp.clock import SystemClock
from ksi_mcp.provider_config import ClaudeCliConfig
from ksi_mcp.providers.base import Message, Request
from ksi_mcp.providers.claude.cli import ClaudeCliProvider

async def main():
    config, folder, environ = json.loads(sys.argv[1])
    provider = ClaudeCliProvider(ClaudeCliConfig(**config), Path(folder), None, environ, SystemClock())
    ask = Request(model="claude-haiku-5-5", system="", messages=(Message(role="user", blocks=("hello",)),))
    await asyncio.gather(*(provider.complete(ask, deadline_s=60) for _ in range(2)))

asyncio.run(main())
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc on this machine")
async def test_a_worker_killed_in_mid_turn_leaves_no_process_and_no_further_call(tmp_path, claude_code) -> None:
    script = {"default": {"reply": "late", "latency_s": 1.5}}
    async with SimServer(Script(parse_script(script))) as sim:
        config = {"command": claude_code.command, "env": claude_code.passed, "processes": 2}
        given = [config, str(tmp_path / "data"), claude_code.environ(tmp_path / "home", sim.url)]
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WORKER, json.dumps(given)),
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        async with asyncio.timeout(20):
            while sim.max_in_flight < 2:  # noqa: ASYNC110  both turns are at the API
                await asyncio.sleep(0.01)
        assert programs(tmp_path) != []
        worker.send_signal(signal.SIGKILL)
        await worker.wait()
        groups = [int(file.stem) for file in (tmp_path / "data" / "claude_cli" / "processes").iterdir()]
        assert len(groups) == 2
        async with asyncio.timeout(1):
            while programs(tmp_path) or any(guard.alive(group, "nobody") for group in groups):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await sim.idle()
        assert [call.outcome for call in sim.log] == ["left", "left"]
        assert end_recorded(tmp_path / "data") == 0  # what is recorded is not there any more
        assert left_over(tmp_path) == []
