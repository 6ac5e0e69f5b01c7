"""`provider_overhead`: what our way of calling a model costs over the plainest one.

The same request goes to `ksi-mcp api-sim` in a process of its own: through our provider for OpenAI-compatible servers,
through raw `httpx2` that reads the stream to its end and takes text and usage out of it, through litellm and through
pydantic-ai's model layer. Each client runs in a process of its own.

A crowd is 512 calls of a second at once, after one call that was answered. Ours goes through the adaptive limit, which
begins at 8, as a worker does; the others let all 512 out at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from harness import Figure, Peer, Result, api_sim, main, run_child, scratch, setting, take_turns, version_of
from peers.overhead_load import AT_ONCE, CALLS, CROWD, MAX_TOKENS, MODELS, PARTS, PROMPT, SYSTEM, Call

from ksi_mcp.clock import SystemClock
from ksi_mcp.completions.limiter import Limits
from ksi_mcp.completions.slots import Slots
from ksi_mcp.errors import KsiError
from ksi_mcp.providers.base import Message, Request
from ksi_mcp.providers.openai.compatible import OpenAICompatibleProvider
from ksi_mcp.providers.openai.wire import request_body

NAME = "openai_compatible"
DEADLINE_S = 90.0
REPLY = ("The second part comes first, since the others need what it finds out. " * 6).strip()
SCRIPT = f"""
replies:
  - {{match: {{model: quick}}, reply: "{REPLY}"}}
  - {{match: {{model: second}}, reply: "{REPLY}", latency_s: 1}}
  - {{match: {{model: patient}}, reply: "{REPLY}", latency_s: 60}}
"""


def request_of(model: str) -> Request:
    messages = (Message(role="user", blocks=(PROMPT,)),)
    return Request(model=model, system=SYSTEM, messages=messages, max_tokens=MAX_TOKENS)


@contextlib.asynccontextmanager
async def ours(base_url: str) -> AsyncIterator[Call]:
    clock = SystemClock()
    slots = Slots(Limits(clock, ceiling=lambda _: CROWD, near=lambda _: True), clock)
    provider = OpenAICompatibleProvider(None, base_url, CROWD)

    async def limited(model: str) -> str:
        await slots.enter(NAME)
        async with slots.call(NAME):
            return (await provider.complete(request_of(model), deadline_s=DEADLINE_S)).text

    try:
        yield limited
    finally:
        await provider.aclose()


@contextlib.asynccontextmanager
async def raw(base_url: str) -> AsyncIterator[Call]:
    bodies = {model: json.loads(request_body(request_of(model), base_url)) for model in MODELS}
    limits = httpx2.Limits(max_connections=CROWD, max_keepalive_connections=CROWD)
    async with httpx2.AsyncClient(limits=limits, timeout=DEADLINE_S, trust_env=False) as client:

        async def call(model: str) -> str:
            texts: list[str] = []
            usage = None
            async with client.stream("POST", f"{base_url}/chat/completions", json=bodies[model]) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        chunk = json.loads(line[6:])
                        usage = chunk.get("usage") or usage
                        texts += [choice["delta"].get("content") or "" for choice in chunk["choices"]]
            assert usage
            return "".join(texts)

        yield call


async def run_part(client: Any, part: str, base_url: str) -> object:
    async with client(base_url) as call:
        try:
            return await PARTS[part](call)
        except KsiError as error:
            raise SystemExit(error.text()) from None


def child_ours(args: list[str]) -> object:
    return asyncio.run(run_part(ours, *args))


def child_raw(args: list[str]) -> object:
    return asyncio.run(run_part(raw, *args))


def _run(name: str, peer: Peer | None) -> dict[str, Any]:
    """All parts of one side, each in a new process and against a new simulator."""
    found: dict[str, Any] = {}
    for part in PARTS:
        with scratch() as home, api_sim(home, SCRIPT) as url:
            base_url = f"{url}/v1"
            if peer is None:
                found[part] = run_child(__file__, name, part, base_url, home=home)
            else:
                found[part] = peer.run("overhead", part, base_url, home=home)
    return found


def measure(runs: int) -> Result:
    peers = [Peer("litellm", "litellm==1.106.2"), Peer("pydantic_ai_slim", "pydantic-ai-slim[openai]==2.68.*")]
    sides = {"ours": lambda: _run("ours", None), "httpx2": lambda: _run("raw", None)}
    for peer in peers:
        if peer.available:
            sides[peer.name] = lambda peer=peer: _run(peer.name, peer)
    found = take_turns(runs, sides)

    def figures(side: str) -> list[Figure]:
        mine = side == "ours"
        each, plain = found[side], found["httpx2"]
        ratios = [run["cpu"] / other["cpu"] for run, other in zip(each, plain, strict=True)]
        seconds = [run["crowd"]["seconds"] for run in each]
        failures = [run["crowd"]["failures"] for run in each]
        return [
            *(
                [Figure(key="cpu_ratio_to_httpx2", values=ratios, goal=1.5 if mine else None)]
                if side != "httpx2"
                else []
            ),
            Figure(key="cpu_ms_per_call", values=[run["cpu"] for run in each], unit="ms"),
            Figure(key="seconds_512x1s", values=seconds, unit="s", goal=1.4 if mine else None),
            Figure(key="failures_512x1s", values=failures, goal=0 if mine else None),
            Figure(
                key="kb_per_waiting_call",
                values=[run["memory"] for run in each],
                unit="KiB",
                goal=200 if mine else None,
            ),
        ]

    return Result(
        name="provider_overhead",
        figures=figures("ours"),
        peers={side: figures(side) for side in sides if side != "ours"},
        setting=setting(
            f"{runs} runs; api-sim in a process of its own; cpu: of the client, {CALLS} calls, {AT_ONCE} at once, "
            f"after a warm-up; crowd: {CROWD} calls of 1 s after one that was answered, ours from a limit of 8, the "
            f"others all at once; memory: VmRSS that {CROWD} waiting calls add",
            version_of("httpx2"),
            *(str(peer) for peer in peers),
        ),
    )


if __name__ == "__main__":
    main(measure, {"ours": child_ours, "raw": child_raw})
