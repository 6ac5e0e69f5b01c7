"""`cli_parallel`: eight turns of Claude Code at once, beside one.

The real program, run by our provider as for eight agents, against `ksi-mcp api-sim` in a process of its own, which
takes five seconds for an answer. Nothing but loopback is asked. Without the program there is no figure: it is looked
for in KSI_TEST_CLAUDE, on PATH and in the package claude_agent_sdk.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

from harness import Figure, Result, api_sim, environment, main, run_child, scratch, setting, take_turns

from ksi_mcp.app import App, AppOptions
from ksi_mcp.clock import SystemClock
from ksi_mcp.config import Config, Home
from ksi_mcp.permissions import Slot, agent_actor, fresh_context
from ksi_mcp.provider_config import ClaudeCliConfig
from ksi_mcp.providers.base import Answer, Behalf, Message, Request, ToolSpec
from ksi_mcp.providers.claude.cli import ClaudeCliProvider
from ksi_mcp.transports.agent_door import AgentDoor

AT_ONCE = 8
LATENCY_S = 5.0
MODEL = "claude-haiku-5-5"
DEADLINE_S = 100.0
CAPABILITIES = frozenset({"base", "messaging", "spawn_agents"})
"""What an agent may do here: each process connects to our server and is told these tools."""
LOOK_S = 4.0
"""After so long all have started and wait for their answers."""
SCRIPT = f"""
replies:
  - {{match: {{prompt: "/slowly/"}}, reply: "Here it is.", latency_s: {LATENCY_S}}}
default: {{reply: "Here it is."}}
"""
# What the program needs to find the simulator and nothing else.
PASSED = {
    "ANTHROPIC_API_KEY": "simulated",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}


def find_program() -> str | None:
    found = os.environ.get("KSI_TEST_CLAUDE") or shutil.which("claude")
    if not found and (spec := importlib.util.find_spec("claude_agent_sdk")) and spec.origin:
        found = str(Path(spec.origin).parent / "_bundled" / "claude")
    return found if found and os.access(found, os.X_OK) else None


class Talk:
    """A conversation of one agent, as the worker keeps it."""

    def __init__(self, provider: ClaudeCliProvider, tools: tuple[ToolSpec, ...], number: int) -> None:
        self._provider = provider
        slot = Slot(turn_id=f"t_{number}", attempt=1, owner="w_1", round=1, index=0)
        ctx = fresh_context(agent_actor(f"a_{number}"))
        ctx = type(ctx)(actor=ctx.actor, root_id=ctx.root_id, slot=slot)
        self._behalf = Behalf(ctx=ctx, tools=tools, resting=nullcontext)
        self._messages: tuple[Message, ...] = ()
        self._last: Answer | None = None

    async def say(self, text: str) -> float:
        """Seconds from the prompt to the end of the turn."""
        messages = (*self._messages, Message(role="user", blocks=(text,)))
        request = Request(
            model=MODEL,
            system="You answer briefly.",
            messages=messages,
            session=None if self._last is None else self._last.session,
            behalf=self._behalf,
        )
        began_s = time.perf_counter()
        self._last = await self._provider.complete(request, deadline_s=DEADLINE_S)
        seconds = time.perf_counter() - began_s
        self._messages = (*messages, Message(role="assistant", blocks=(self._last.text,)))
        return seconds


@contextlib.asynccontextmanager
async def provided(home: Path, program: str, url: str) -> Any:
    environ = {**environment(home), **PASSED, "ANTHROPIC_BASE_URL": url, "CLAUDE_CONFIG_DIR": str(home / "claude")}
    names = (*PASSED, "ANTHROPIC_BASE_URL")
    config = ClaudeCliConfig(command=program, processes=AT_ONCE, env=names)
    scripted = Config(provider="scripted")
    async with App(Home(root=home), AppOptions(worker="none", environ={}), config=scripted) as app:
        tools = app.toolbox.specs(CAPABILITIES)
        door = AgentDoor(cast("Any", None), cast("Any", None))  # no tool is called
        door.close((await door.admit("a_0", ())).token)  # the worker's first agent has opened it
        provider = ClaudeCliProvider(config, home, door, environ, SystemClock())
        try:
            yield lambda number: Talk(provider, tools, number)
        finally:
            await provider.aclose()
            await door.aclose()


async def at_once(home: Path, program: str, url: str, count: int) -> dict[str, float]:
    """Seconds until the last of so many turns has ended, and what a process takes while they wait, in MiB."""
    async with provided(home, program, url) as talk:
        began_s, before_s = time.perf_counter(), _children_cpu_s()
        turns = [asyncio.create_task(talk(number).say("Take it slowly.")) for number in range(count)]
        await asyncio.sleep(LOOK_S)
        memory = [memory_mb(pid) for pid in descendants(os.getpid()) if is_program(pid, program)]
        await asyncio.gather(*turns)
        seconds = time.perf_counter() - began_s
    processes = max(len(memory), 1)
    return {
        "seconds": seconds,
        "processes": len(memory),
        "rss_mb": sum(rss for rss, _ in memory) / processes,
        "pss_mb": sum(pss for _, pss in memory) / processes,
        "cpu_s": (_children_cpu_s() - before_s) / count,
    }


async def held(home: Path, program: str, url: str) -> dict[str, float]:
    """The first turn of an agent, which starts a process, and its second, which finds it there; answers at once."""
    async with provided(home, program, url) as talk:
        first = talk(1)
        return {"fresh_s": await first.say("Begin."), "held_s": await first.say("Go on.")}


def child_at_once(args: list[str]) -> dict[str, float]:
    home, program, url, count = args
    return asyncio.run(at_once(Path(home), program, url, int(count)))


def child_held(args: list[str]) -> dict[str, float]:
    home, program, url = args
    return asyncio.run(held(Path(home), program, url))


# ----------------------------------------------------------------------------------------- processes


def descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, look = [], [pid]
    while look:
        parent = look.pop()
        mine = [child for child, of in parents.items() if of == parent]
        found += mine
        look += mine
    return found


def is_program(pid: int, program: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/exe").resolve() == Path(program).resolve()
    return False


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident, and its share of what processes have in common."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, size = line.partition(":")
        sizes[name] = int(size.split()[0]) / 1024
    return sizes["Rss"], sizes["Pss"]


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def measure(runs: int) -> Result:
    program = find_program()
    if program is None:
        print(
            "cli_parallel is skipped: there is no Claude Code (set KSI_TEST_CLAUDE to it)", file=sys.stderr, flush=True
        )
        return Result(name="cli_parallel", figures=[], setting=setting("skipped: there is no Claude Code"))
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()

    def child(part: str, *more: str) -> Any:
        with scratch() as home, api_sim(home, SCRIPT) as url:
            return run_child(__file__, part, str(home), program, url, *more, home=home)

    found = take_turns(
        runs,
        {
            "one": lambda: child("at_once", "1"),
            "eight": lambda: child("at_once", str(AT_ONCE)),
            "held": lambda: child("held"),
        },
    )
    one, eight, kept = found["one"], found["eight"], found["held"]
    ratios = [many["seconds"] / single["seconds"] for many, single in zip(eight, one, strict=True)]
    return Result(
        name="cli_parallel",
        figures=[
            Figure(key="ratio_8_to_1", values=ratios, goal=1.6),
            Figure(key="seconds_1", values=[run["seconds"] for run in one], unit="s"),
            Figure(key="seconds_8", values=[run["seconds"] for run in eight], unit="s"),
            Figure(key="cpu_s_per_turn", values=[run["cpu_s"] for run in eight], unit="s"),
            Figure(key="mb_per_process", values=[run["rss_mb"] for run in eight], unit="MiB"),
            Figure(key="pss_mb_per_process", values=[run["pss_mb"] for run in eight], unit="MiB"),
            Figure(key="held_second_turn_ratio", values=[run["held_s"] / run["fresh_s"] for run in kept]),
            Figure(key="seconds_fresh", values=[run["fresh_s"] for run in kept], unit="s"),
            Figure(key="seconds_held", values=[run["held_s"] for run in kept], unit="s"),
        ],
        setting=setting(
            f"{runs} runs; claude {version}; api-sim in a process of its own, {LATENCY_S:g} s for an answer "
            f"({AT_ONCE} turns beside one) or none (held beside fresh); a new data folder each; "
            f"our tools offered through our server; memory after "
            f"{LOOK_S:g} s, at least {int(min(run['processes'] for run in eight))} processes",
        ),
    )


if __name__ == "__main__":
    main(measure, {"at_once": child_at_once, "held": child_held})
