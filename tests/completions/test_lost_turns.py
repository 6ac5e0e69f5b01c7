"""A turn that loses its worker again and again, and a worker that is about to end."""

from __future__ import annotations

import pytest

from ksi_mcp.app import App, AppOptions
from ksi_mcp.completions.request import deadline_s
from ksi_mcp.config import Config, Home
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.queues.retry import MAX_TRIES


async def test_a_turn_that_loses_its_worker_again_and_again_is_given_up_and_the_next_one_runs(open_house) -> None:
    slow = {"default": {"reply": "late", "latency_s": 1}}
    async with open_house(slow) as house:
        await house.spawn("a")
        turn = await house.call("agent_send", agent="a", message="go")
        following = await house.call("agent_send", agent="a", message="and on")
        await house.started()
    for _ in range(MAX_TRIES - 1):
        async with open_house(slow) as house:
            await house.started()
    async with open_house({"default": {"reply": "ok"}}) as house:
        done = await house.call("agent_wait", turns=[turn["turn"], following["turn"]])
        lost, after = done["turns"]
        assert (lost["status"], lost["error_class"]) == ("failed", "infra")
        assert "worker was lost" in lost["error"]
        assert after["status"] == "done"
        assert house.calls() == [(1, "uncertain")] * MAX_TRIES + [(1, "answered")]
        house.books()


async def test_a_call_of_a_lost_worker_whose_turn_was_cancelled_is_work_for_the_next_worker(
    open_house, tmp_path
) -> None:
    async with open_house({"default": {"reply": "late", "latency_s": 1}}) as house:
        await house.spawn("a")
        await house.call("agent_send", agent="a", message="go")
        await house.started()
    async with App(Home(root=tmp_path), AppOptions(worker="none"), config=Config(provider="scripted")) as app:
        await app.toolbox.call(fresh_context(OPERATOR), "agent_terminate", {"agent": "a"})
        assert await app.unfinished()
    async with open_house() as house:
        await house.until(lambda: house.calls() == [(1, "uncertain")])
        house.books()
        await house.until(lambda: house.rows("SELECT * FROM outbox") == [])
        assert not await house.app.unfinished()


async def test_a_worker_that_is_about_to_end_claims_nothing_once_its_lock_is_gone(tmp_path) -> None:
    class Watched(App):
        late: str | None = None
        claimed_meanwhile = False

        async def unfinished(self) -> bool:
            if not self._lock.is_locked and self.late is None:
                sent = await self.toolbox.call(
                    fresh_context(OPERATOR), "agent_send", {"agent": "a", "message": "just in time"}
                )
                self.late = sent.data["turn"]
                for _ in range(20):  # as many looks as a claim would need
                    row = await self.services.journal.read(lambda tx: tx.one("queues.one", {"turn_id": self.late}))
                    self.claimed_meanwhile |= row is None or row["state"] != "ready"
            return await super().unfinished()

    options, config = AppOptions(worker="inside"), Config(provider="scripted")
    async with Watched(Home(root=tmp_path), options, config=config) as app:
        await app.toolbox.call(fresh_context(OPERATOR), "agent_spawn", {"name": "a", "prompt": "You help."})
        await app.run_until_idle(0)
        assert app.late is not None
        assert not app.claimed_meanwhile
        done = await app.toolbox.call(fresh_context(OPERATOR), "agent_history", {"agent": "a"})
        assert [turn["prompt"] for turn in done.data["turns"]] == ["just in time"]


@pytest.mark.parametrize("asked", [5.0, 1800.0])
async def test_a_deadline_that_was_asked_for_is_kept(open_house, asked: float) -> None:
    async with open_house() as house:
        await house.spawn("a")
        sent = await house.call("agent_send", agent="a", message="go", timeout_s=asked)
        services = house.app.services
        turn = await services.journal.read(lambda tx: services.queues.get(tx, sent["turn"]))
        agent = await services.journal.read(lambda tx: services.roster.get(tx, sent["agent"]))
        assert deadline_s(turn, agent) == (asked, True)
