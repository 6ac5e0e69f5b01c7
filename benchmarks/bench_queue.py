"""`queue`: how many turns a second are enqueued, claimed and finished, each step durable before it is answered.

Side by side with the most that this disk and this writer can do: rows of about 500 bytes, one insert a unit, through
the same group writer at the same durability. What is between the two is the price of the queue itself.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from harness import Figure, Result, main, run_child, scratch, setting, take_turns

from ksi_mcp.clock import SystemClock
from ksi_mcp.db import Tx
from ksi_mcp.db.sqlite import SqliteDatabase, open_sqlite
from ksi_mcp.ids import WorkerId
from ksi_mcp.queues.model import Turn, TurnDraft
from ksi_mcp.queues.session_queues import SessionQueues

SESSIONS = 500
TURNS_EACH = 20
"""Of each session: 10,000 cycles a run."""
ROWS_EACH = 100
"""Of each of as many writers: 50,000 rows a run."""
AT_WORK = 500
"""Turns claimed and not finished at once, as the concurrency of a worker."""
WARM_UP = 500
ROW_BYTES = 500


async def cycles(path: Path) -> float:
    """Cycles a second. Every session enqueues while the turns are claimed and finished."""
    db = await open_sqlite(path, SystemClock())
    try:
        bench = QueueRun(db)
        await bench.prepare()
        started = time.perf_counter()
        await bench.run()
        elapsed_s = time.perf_counter() - started
        await bench.verify()
    finally:
        await db.close()
    return SESSIONS * TURNS_EACH / elapsed_s


class QueueRun:
    """One run: a producer a session, one claimer, a task a turn, as in the worker."""

    def __init__(self, db: SqliteDatabase) -> None:
        self.db = db
        self.queues = SessionQueues()
        self.owner = WorkerId("w_bench")
        self.sessions = [f"a_{n}" for n in range(SESSIONS)]
        self.finished: dict[str, list[int]] = {session: [] for session in self.sessions}
        self.at_work = 0
        self.bell = asyncio.Event()
        db.on_commit(lambda _notes: self.bell.set())

    async def prepare(self) -> None:
        await asyncio.gather(*(self.db.write(lambda tx, s=s: self.queues.open_session(tx, s)) for s in self.sessions))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for session in self.sessions:
                group.create_task(self.produce(session))
            left = SESSIONS * TURNS_EACH
            while left:
                self.bell.clear()
                free = AT_WORK - self.at_work
                turns = await self.claim(free) if free else []
                for turn in turns:
                    self.at_work += 1
                    group.create_task(self.finish(turn))
                left -= len(turns)
                if left and not turns:
                    await self.bell.wait()

    async def claim(self, limit: int) -> list[Turn]:
        return await self.db.write(lambda tx: self.queues.claim(tx, self.owner, "scripted", limit=limit))

    async def produce(self, session: str) -> None:
        draft = TurnDraft(
            session_id=session,
            provider="scripted",
            prompt="What is the state of the work, and what is to be done next? " * 4,
            orchestration_id=None,
            created_by="operator",
            cause_id=None,
            root_id="r_bench",
            hops=0,
            depth=0,
        )
        for _ in range(TURNS_EACH):
            await self.db.write(lambda tx: self.queues.enqueue(tx, draft))

    async def finish(self, turn: Turn) -> None:
        await self.db.write(lambda tx: self.queues.finish(tx, turn, state="done", result="done: " + "x" * 100))
        self.finished[turn.session_id].append(turn.seq)
        self.at_work -= 1
        self.bell.set()

    async def verify(self) -> None:
        """A fast queue that loses turns or their order is none."""
        expected = list(range(1, TURNS_EACH + 1))
        wrong = [session for session, seqs in self.finished.items() if seqs != expected]
        left = await self.db.read(lambda tx: tx.one("queues.next_ready"))
        if wrong or (left is not None and left["run_at_ms"] is not None):
            raise SystemExit(f"{len(wrong)} sessions ran out of order or are not done: {wrong[:3]}")


async def rows(path: Path) -> float:
    """Durable single-row inserts a second through the same writer: the limit."""
    db = await open_sqlite(path, SystemClock())
    payload = "x" * ROW_BYTES

    def create(tx: Tx) -> None:
        _execute(tx, "CREATE TABLE raw (n INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT NOT NULL)")

    def insert(tx: Tx) -> None:
        _execute(tx, "INSERT INTO raw (payload) VALUES (:payload)", {"payload": payload})

    async def write(count: int) -> None:
        for _ in range(count):
            await db.write(insert)

    try:
        await db.write(create)
        await write(1)
        started = time.perf_counter()
        await asyncio.gather(*(write(ROWS_EACH) for _ in range(SESSIONS)))
        elapsed_s = time.perf_counter() - started
    finally:
        await db.close()
    return SESSIONS * ROWS_EACH / elapsed_s


def _execute(tx: Tx, sql: str, params: dict[str, str] | None = None) -> None:
    """A statement that no capability names: the limit is the writer's, not a table's of ours."""
    tx._connection.execute(sql, params or {})  # noqa: SLF001


def child_cycles(args: list[str]) -> float:
    return asyncio.run(cycles(Path(args[0])))


def child_rows(args: list[str]) -> float:
    return asyncio.run(rows(Path(args[0])))


def measure(runs: int) -> Result:
    with scratch() as folder:
        count = iter(range(1_000_000))

        def side(name: str) -> float:
            return run_child(__file__, name, str(folder / f"{next(count)}.db"), home=folder)

        found = take_turns(runs, {"cycles": lambda: side("cycles"), "rows": lambda: side("rows")})
    fractions = [ours / limit for ours, limit in zip(found["cycles"], found["rows"], strict=True)]
    return Result(
        name="queue",
        figures=[
            Figure(key="cycles_per_second", values=found["cycles"], unit="1/s", at_most=False),
            Figure(key="fraction_of_group_commit", values=fractions, goal=0.1, at_most=False),
        ],
        peers={"group_commit": [Figure(key="rows_per_second", values=found["rows"], unit="1/s", at_most=False)]},
        setting=setting(
            f"{runs} runs; synchronous=FULL; {SESSIONS} sessions x {TURNS_EACH} turns, up to {AT_WORK} at work, order "
            f"verified; group_commit: {SESSIONS} writers x {ROWS_EACH} rows of {ROW_BYTES} B"
        ),
    )


if __name__ == "__main__":
    main(measure, {"cycles": child_cycles, "rows": child_rows})
