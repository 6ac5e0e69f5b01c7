"""`memory`: what one process holds in memory, as the system counts it (VmRSS).

The server: `serve` on stdio after its first `tools/list`. The worker: `worker` after its first turn with the real
Anthropic SDK, which asks the simulator in a third process; nothing leaves the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from harness import (
    Figure,
    Result,
    StdioServer,
    environment,
    main,
    rss_mb,
    run_child,
    scratch,
    setting,
    take_turns,
    version_of,
)

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Home
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.providers.script import Script, parse_script
from ksi_mcp.web.sim import serve_sim

KSI = [sys.executable, "-m", "ksi_mcp"]
TURN_TIMEOUT_S = 60


def of_server() -> float:
    with scratch() as home, StdioServer([*KSI, "serve"], home) as server:
        server.list_tools()
        return rss_mb(server.pid)


def of_worker() -> float:
    with scratch() as home, simulator(home) as url:
        (home / "config.yaml").write_text(f"provider: anthropic\nanthropic: {{base_url: {json.dumps(url)}}}\n", "utf-8")
        turn = run_child(__file__, "send", str(home), home=home)
        with process([*KSI, "worker"], home) as worker:
            run_child(__file__, "wait", str(home), turn, home=home)
            return rss_mb(worker.pid)


# ------------------------------------------------------------------------ processes, and their ends


@contextlib.contextmanager
def process(command: list[str], home: Path) -> Iterator[subprocess.Popen[str]]:
    with (home / "log").open("a") as log:
        started = subprocess.Popen(
            command, env=environment(home), cwd=home, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.communicate()


@contextlib.contextmanager
def simulator(home: Path) -> Iterator[str]:
    with process([sys.executable, __file__, "--child", "simulate"], home) as sim:
        assert sim.stdout
        url = sim.stdout.readline().strip()
        if not url:
            raise SystemExit(f"the simulator did not start:\n{(home / 'log').read_text('utf-8')[-3000:]}")
        yield url


def child_simulate(_args: list[str]) -> None:
    script = Script(parse_script({"default": {"reply": "Half done; the rest follows tomorrow."}}))
    asyncio.run(serve_sim(script, on_ready=lambda url: print(url, flush=True)))


def child_send(args: list[str]) -> str:
    """Make an agent and give it a turn; nobody runs it yet."""

    async def send(app: App) -> str:
        await app.toolbox.call(fresh_context(OPERATOR), "agent_spawn", {"name": "analyst", "prompt": "Answer briefly."})
        done = await app.toolbox.call(
            fresh_context(OPERATOR), "agent_send", {"agent": "analyst", "message": "How far is the work?"}
        )
        return str(done.data["turn"])

    return asyncio.run(_with_app(Path(args[0]), send))


def child_wait(args: list[str]) -> str:
    """Wait until the turn is done; a turn that failed has loaded less than a turn that was answered."""

    async def wait(app: App) -> str:
        until = time.monotonic() + TURN_TIMEOUT_S
        while time.monotonic() < until:
            turn = await app.services.journal.read(lambda tx: app.services.queues.get(tx, args[1]))
            if turn.final:
                if turn.state != "done":
                    raise SystemExit(f"the turn ended as {turn.state}: {turn.error}")
                return turn.state
            await asyncio.sleep(0.05)
        raise SystemExit(f"the turn was not done within {TURN_TIMEOUT_S} s")

    return asyncio.run(_with_app(Path(args[0]), wait))


async def _with_app(home: Path, work: Callable[[App], Awaitable[str]]) -> str:
    async with App(Home(root=home), AppOptions(worker="none")) as app:
        return await work(app)


def measure(runs: int) -> Result:
    found = take_turns(runs, {"server": of_server, "worker": of_worker})
    return Result(
        name="memory",
        figures=[
            Figure(key="rss_mb", values=found["server"], unit="MiB", goal=90),
            Figure(key="rss_mb_after_turn", values=found["worker"], unit="MiB", goal=135),
        ],
        setting=setting(
            f"{runs} runs; VmRSS of `serve` (stdio) after tools/list, of `worker` after one turn against the simulator",
            version_of("mcp"),
            version_of("anthropic"),
        ),
    )


if __name__ == "__main__":
    main(measure, {"simulate": child_simulate, "send": child_send, "wait": child_wait})
