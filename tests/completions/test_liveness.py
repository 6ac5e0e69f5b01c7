"""A worker that hangs is ended and replaced; one that wakes after that has no say."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.app import App, AppOptions
from ksi_mcp.completions.liveness import LOOKS, Heartbeat, HungWorkerWatch, process_start
from ksi_mcp.config import Config, Home
from ksi_mcp.errors import Conflict
from ksi_mcp.ids import WorkerId
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.testing import FakeClock

HUNG_S = 60.0


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


@contextlib.asynccontextmanager
async def watched(open_house: Any, process: int, *, held: bool = True, **row: Any) -> AsyncIterator[Any]:
    """A house whose worker's row names that process; a look lets the given time go by before."""
    async with open_house(worker={"beat_s": 3600}) as house:
        started = process_start(process)
        facts = {"worker_id": "w_x", "pid": process, "host": platform.node(), "process_start": started, **row}
        journal = house.app.services.journal

        def write(tx: Any) -> None:
            tx.run("completions.worker_clear")
            tx.run("completions.worker_begin", {**facts, "now_ms": tx.now_ms})

        await journal.commit(write)
        clock = FakeClock()
        watch = HungWorkerWatch(journal, clock, hung_s=HUNG_S, held=lambda: held)

        async def look(after_s: float) -> bool:
            await clock.advance(after_s)
            return await watch.look()

        house.look = look
        yield house


async def test_a_worker_without_a_sign_of_life_for_a_minute_is_ended(open_house, victim) -> None:
    async with watched(open_house, victim.pid) as house:
        assert [await house.look(HUNG_S / LOOKS) for _ in range(LOOKS)] == [False] * LOOKS  # the first only begins
        assert await house.look(HUNG_S / LOOKS)
        assert victim.wait(timeout=5) == -signal.SIGKILL
        (event,) = house.events("system:worker_killed")
        assert (event["worker"], event["silent_s"]) == ("w_x", HUNG_S)
        for _ in range(2 * LOOKS):
            assert not await house.look(HUNG_S)
        assert len(house.events("system:worker_killed")) == 1


async def test_each_sign_of_life_begins_a_new_minute(open_house, victim) -> None:
    async with watched(open_house, victim.pid) as house:
        for _ in range(3 * LOOKS):
            assert not await house.look(HUNG_S / LOOKS)
            await house.app.services.journal.commit(
                lambda tx: tx.run("completions.worker_beat", {"worker_id": "w_x", "now_ms": tx.now_ms})
            )
        assert victim.poll() is None


async def test_an_observer_that_slept_itself_has_seen_nothing(open_house, victim) -> None:
    async with watched(open_house, victim.pid) as house:
        assert not await house.look(0)
        assert not await house.look(100_000)
        assert not await house.look(100_000)
        assert victim.poll() is None


@pytest.mark.parametrize(
    "row", [{"host": "elsewhere"}, {"process_start": "another"}, {"pid": os.getpid()}, {"held": False}]
)
async def test_a_process_that_is_not_surely_the_hung_worker_is_left_alone(open_house, victim, row) -> None:
    async with watched(open_house, victim.pid, **row) as house:
        for _ in range(3 * LOOKS):
            assert not await house.look(HUNG_S)
        assert victim.poll() is None
        assert house.events("system:worker_killed") == []


def test_a_process_is_known_by_its_start_and_no_process_by_nothing(victim) -> None:
    assert process_start(os.getpid()) == process_start(os.getpid())
    assert process_start(victim.pid) not in (None, process_start(os.getpid()))
    victim.kill()
    victim.wait()
    assert process_start(victim.pid) is None


async def test_a_worker_gives_its_sign_of_life_and_hears_when_another_took_over(open_house) -> None:
    async with open_house(worker={"beat_s": 3600}) as house:
        journal, lost = house.app.services.journal, asyncio.Event()
        mine = Heartbeat(journal, WorkerId("w_mine"), every_s=0.001, lost=lost.set)
        await mine.begin()
        beating = asyncio.create_task(mine.run())
        await house.until(lambda: house.rows("SELECT worker_id FROM worker WHERE beat > 2") == [("w_mine",)])
        assert house.rows("SELECT pid, host FROM worker") == [(os.getpid(), platform.node())]
        await Heartbeat(journal, WorkerId("w_other"), every_s=1, lost=lost.set).begin()
        with pytest.raises(Conflict, match="another worker has taken over"):
            await asyncio.wait_for(beating, 5)
        assert lost.is_set()
        assert house.rows("SELECT worker_id, beat FROM worker") == [("w_other", 0)]


async def test_a_worker_that_wakes_after_its_turns_were_taken_over_writes_nothing_of_them(open_house, tmp_path) -> None:
    script = {"replies": [{"match": {"prompt": "slow"}, "reply": "late", "latency_s": 60}], "default": {"reply": "ok"}}
    async with open_house(script, tmp_path / "home", worker={"beat_s": 3600}) as asleep:
        await asleep.spawn("a")
        slow = await asleep.call("agent_send", agent="a", message="slow")
        behind = await asleep.call("agent_send", agent="a", message="behind")
        await asleep.started()
        asleep.app._lock.release()  # as a file system that forgot the lock would have it
        # It sleeps: it claims nothing. Its call is under way all the same.
        async with asleep.app.worker.claiming, open_house(script, tmp_path / "home") as heir:
            await heir.started()
            heir.gate.opened.set()
            waited = await heir.call("agent_wait", turns=[slow["turn"], behind["turn"]], timeout_s=10)
            assert waited["census"]["ok"] == 2
            before = heir.rows("SELECT turn_id, state, result, attempt FROM turn ORDER BY n")
            asleep.gate.opened.set()  # now its answer comes, late
            await asleep.until(lambda: not asleep.app.worker.busy)
            assert heir.rows("SELECT turn_id, state, result, attempt FROM turn ORDER BY n") == before
            assert [row[1] for row in heir.calls()] == ["uncertain", "answered", "answered"]
            beat = Heartbeat(
                asleep.app.services.journal, WorkerId("w_asleep"), every_s=0.001, lost=asleep.app._stop_working
            )
            with pytest.raises(Conflict, match="another worker has taken over"):
                await asyncio.wait_for(beat.run(), 5)
            working = [task for task in asleep.app._tasks if task.get_name() in ("ksi-worker", "ksi-router")]
            await asyncio.wait(working, timeout=5)
            assert [task.cancelled() for task in working] == [True, True]
            heir.books()


SCRIPT = '{"replies": [{"match": {"prompt": "slow"}, "latency_s": 1.5, "reply": "late"}], "default": {"reply": "ok"}}'


@pytest.fixture
def outlived() -> Iterator[None]:
    """The handles of processes that outlive their starter go here, not in some later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # workers outlive their starter
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="stops a process and looks at it through /proc")
async def test_a_worker_process_that_was_stopped_is_killed_and_another_finishes_its_turn(tmp_path, outlived) -> None:
    home = Home(root=tmp_path)
    (tmp_path / "script.yaml").write_text(SCRIPT)
    settings = '{"provider": "scripted", "scripted": {"script": "script.yaml"}, '
    settings += '"worker": {"beat_s": 0.05, "hung_s": 1, "idle_s": 1}}'
    home.config.write_text(settings)
    seen: set[int] = set()

    def workers() -> set[int]:
        connection = sqlite3.connect(home.database, timeout=10)
        rows = connection.execute("SELECT pid FROM worker WHERE beat > 0").fetchall()
        connection.close()
        seen.update(row[0] for row in rows)
        return {row[0] for row in rows}

    async def until(holds: Any) -> None:
        async with asyncio.timeout(40):
            while not holds():  # noqa: ASYNC110  another process's doing
                await asyncio.sleep(0.02)

    try:
        async with App(home, AppOptions(worker="detached"), config=Config.model_validate_json(settings)) as app:

            async def call(tool: str, **args: Any) -> dict[str, Any]:
                return (await app.toolbox.call(fresh_context(OPERATOR), tool, args)).data

            await call("agent_spawn", name="a", prompt="You help.")
            turn = await call("agent_send", agent="a", message="slow")
            await until(workers)
            (stopped,) = workers()
            os.kill(stopped, signal.SIGSTOP)
            waited = await call("agent_wait", turns=[turn["turn"]], timeout_s=40)
            assert waited["census"]["ok"] == 1
            (follower,) = workers()
            assert follower != stopped
            state = Path(f"/proc/{stopped}/stat")
            await until(lambda: not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z")
            killed = (await call("event_query", names=["system:worker_killed"]))["events"]
            assert len(killed) == 1
    finally:
        for pid in seen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                await asyncio.to_thread(os.waitpid, pid, 0)
