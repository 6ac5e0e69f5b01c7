"""A hundred agents, the real SDK, and an API that has had enough of them for a while."""

from __future__ import annotations

import time

from ksi_mcp.providers.base import Request
from ksi_mcp.providers.script import Planned, Script, parse_script
from ksi_mcp.web.sim import SimServer

AGENTS = 97
SHUT_S = 3.0
REFUSED = {"default": {"fail": {"kind": "rate", "status": 429, "retry_after_s": 1}}}
ANSWERED = {"default": {"reply": "here you are, {{agent}}", "latency_s": 0.05}}


class ShutAtFirst(Script):
    """Refuses everything for some seconds from the first request on, as a limit per minute does."""

    def __init__(self) -> None:
        super().__init__(parse_script(ANSWERED))
        self._refusing = Script(parse_script(REFUSED))
        self._first_s: float | None = None

    def answer(self, request: Request) -> Planned:
        now_s = time.monotonic()
        if self._first_s is None:
            self._first_s = now_s
        return self._refusing.answer(request) if now_s - self._first_s < SHUT_S else super().answer(request)


async def test_ninety_seven_agents_that_are_all_refused_for_a_while_ask_little_more_than_they_need(open_house) -> None:
    async with (
        SimServer(ShutAtFirst()) as sim,
        open_house(provider="anthropic", anthropic={"base_url": sim.url}) as house,
    ):
        turns = []
        for number in range(AGENTS):
            await house.spawn(f"agent{number}")
            turns.append((await house.call("agent_send", agent=f"agent{number}", message="please"))["turn"])
        gathered = await house.call("agent_wait", turns=turns, timeout_s=55)
        assert gathered["census"]["ok"] == AGENTS, gathered["census"]
        await sim.idle()
        refused = [request for request in sim.log if request.status == 429]
        assert len(sim.log) - len(refused) == AGENTS  # nothing was asked again that had been answered
        assert len(refused) > 1
        assert len(sim.log) <= 1.5 * AGENTS
        # A refusal costs nothing, and no turn was given up for being sent back. A call may have been let out in the
        # moment in which the door was shut: it never left.
        failed = house.rows("SELECT error, cost_usd_micros FROM provider_call WHERE state = 'failed'")
        assert {cost for _, cost in failed} == {0}
        left = [error for error, _ in failed if not error.startswith("not sent")]
        assert len(left) == len(refused)
        house.books()
