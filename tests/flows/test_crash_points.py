"""A fault at every statement that a turn's transactions run: disk full, as SQLite itself reports it.

The fault is real: the statement at hand is interrupted inside SQLite, which fails it and may roll the whole
transaction back. Whatever was hit, the run must come to the same end: nothing lost, nothing twice, every
micro-dollar booked, no limit overstepped at any commit.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.errors import StoreError
from ksi_mcp.events.journal import WOKEN

USAGE = {"input_tokens": 100, "output_tokens": 10}
SCRIPT = {
    "replies": [
        {"match": {"agent": "a", "round": 1}, "fail": {"kind": "overload", "retry_after_s": 0.001, "times": 1}},
        {
            "match": {"agent": "a", "round": 1},
            "reply": "first",
            "usage": USAGE,
            "tool_calls": [
                {"name": "event_emit", "input": {"event": "note:one", "data": {"n": 1}}},
                {"name": "agent_send", "input": {"agent": "b", "message": "from a", "reply_event": "b:said"}},
                {"name": "event_query", "input": {"names": ["note:*"]}},
            ],
        },
        {"match": {"agent": "a", "round": 2}, "reply": "last", "usage": USAGE},
    ],
    "default": {"reply": "yes", "usage": USAGE},
}  # fmt: skip
CHUNKS = 4
STRIDE = 1 if os.environ.get("KSI_TEST_THOROUGH") else 4
"""CI tries every statement; some hundred runs take a while."""


class Fault:
    """Counts the statements of the writing connection and interrupts the one that is its target."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.seen = 0
        self.struck = False
        self._armed = False

    def traced(self, statement: str) -> None:
        if statement.startswith(("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "PRAGMA", "--")):
            return
        self.seen += 1
        self._armed = self.seen == self.target

    def progress(self) -> int:
        strikes, self._armed = self._armed, False
        self.struck = self.struck or strikes
        return int(strikes)


def within_limits(house: Any) -> None:
    """`spent + reserved <= limit` in every account, as the newest commit left it."""
    over = house.rows(
        "SELECT account_id FROM account WHERE spent_usd_micros + reserved_usd_micros > limit_usd_micros"
        " OR spent_tokens + reserved_tokens > limit_tokens OR spent_turns > limit_turns"
    )
    assert over == []


async def insist(house: Any, tool: str, **args: Any) -> dict[str, Any]:
    """As a client does: the same call with the same key again, until it is told that it was done."""
    while True:
        try:
            return dict(await house.call(tool, **args))
        except StoreError:
            continue


async def run(open_house: Any, root: Path, target: int) -> Fault:
    fault = Fault(target)
    async with open_house(SCRIPT, root=root, budget={"usd": 0.2, "turns": 3}) as house:
        await house.spawn("a", ("base", "messaging"))
        await house.spawn("b", ("base",), parent="a")
        await house.call("routing_add_rule", source_pattern="note:one", target="note:routed")
        connection: sqlite3.Connection = house.app._db._writer._connection._conn
        house.app._db.on_commit(lambda _notes: within_limits(house))

        def arm(on: bool) -> None:
            connection.set_trace_callback(fault.traced if on else None)
            connection.set_progress_handler(fault.progress if on else None, 8)  # looked at so often, in steps

        await house.app._db._writer.call(lambda _connection: arm(True))
        await insist(house, "agent_send", agent="a", message="go", idempotency_key="k")
        async with asyncio.timeout(20):
            while not (
                house.rows("SELECT state FROM turn WHERE state NOT IN ('done', 'failed')") == []
                and house.rows("SELECT * FROM outbox") == []
                and len(house.rows("SELECT * FROM turn")) == 2
            ):
                house.gate.ahead_ms += 10_000  # what waits for its time is due
                try:
                    await house.app.services.journal.commit(lambda tx: tx.announce(WOKEN))
                except StoreError:
                    continue
                await asyncio.sleep(0.002)
        await house.app._db._writer.call(lambda _connection: arm(False))
        await house.until(lambda: not house.app.worker.busy)
        where = f"statement {target}"
        assert house.rows("SELECT prompt, state, result FROM turn ORDER BY n") == [
            ("go", "done", "last"),
            ("from a", "done", "yes"),
        ], where
        assert house.events("note:one") == house.events("note:routed") == [{"n": 1}], where
        assert len(house.events("b:said")) == 1, where
        assert len(house.events("completion:result")) == 2, where
        assert house.rows("SELECT idx, is_error FROM tool_call ORDER BY idx") == [(0, 0), (1, 0), (2, 0)], where
        assert house.rows(
            "SELECT 1 FROM provider_call WHERE state = 'answered' GROUP BY turn_id, round HAVING COUNT(*) > 1"
        ) == [], where  # fmt: skip
        house.books()
        within_limits(house)
    return fault


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store that failed is asked again at once: here it is well by then."""
    monkeypatch.setattr("ksi_mcp.completions.worker.STORE_PAUSE_S", 0.001)
    return


@pytest.mark.timeout(120)
@pytest.mark.parametrize("chunk", range(CHUNKS))
async def test_a_fault_at_any_statement_changes_nothing(
    open_house: Any, tmp_path: Path, chunk: int, quick: None
) -> None:
    target, struck = 1 + chunk * STRIDE, 0
    while True:
        fault = await run(open_house, tmp_path / str(target), target)
        if fault.seen < target:
            break
        struck += fault.struck
        target += CHUNKS * STRIDE
    assert struck >= 20 // STRIDE  # some hundred statements, shared by the chunks
