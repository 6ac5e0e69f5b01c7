"""Words put into a conversation from outside: they wait for the next turn that starts, and then belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ksi_mcp.agents.history import plain
from ksi_mcp.agents.model import Agent
from ksi_mcp.db import Row, Tx
from ksi_mcp.errors import Conflict, Exhausted, Invalid
from ksi_mcp.events.journal import Recorder
from ksi_mcp.permissions import Context

Position = Literal["before", "after", "system"]
"""Of the words in their turn: before or after its prompt, or at the end of its system prompt."""

MAX_CONTENT_CHARS: Final = 50_000
MAX_WAITING: Final = 50
MAX_WAITING_CHARS: Final = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """Words and their place in a turn."""

    injection_id: int
    position: Position
    content: str
    created_by: str


def inject(tx: Tx, journal: Recorder, ctx: Context, agent: Agent, *, content: str, position: Position) -> int:
    """Put words into an agent's conversation; its next turn that starts will hold them. How many wait now.

    Raises:
        Conflict: the agent has ended.
        Invalid: there are no words, or too many.
        Exhausted: as much waits as may wait.
    """
    if agent.life != "active":
        raise Conflict(f"agent {agent.name!r} is {agent.life}", hint="agent_list(status='active') shows the living")
    content = plain(content)
    if not content.strip():
        raise Invalid("the content is empty")
    if len(content) > MAX_CONTENT_CHARS:
        raise Invalid(f"the content has {len(content):,} characters, the limit is {MAX_CONTENT_CHARS:,}")
    row = tx.one("agents.injections_waiting", {"session_id": agent.agent_id})
    waiting, chars = (0, 0) if row is None else (int(row["waiting"]), int(row["chars"]))
    if waiting >= MAX_WAITING or chars + len(content) > MAX_WAITING_CHARS:
        raise Exhausted(
            f"{waiting} injections with {chars:,} characters wait for the next turn of {agent.name!r}",
            hint=f"at most {MAX_WAITING} and {MAX_WAITING_CHARS:,} characters wait; agent_send starts a turn",
        )
    values = {"session_id": agent.agent_id, "position": position, "content": content, "created_by": str(ctx.actor)}
    made = tx.one("agents.inject", {**values, "now_ms": tx.now_ms})
    assert made is not None  # noqa: S101  RETURNING always has a row
    facts = {
        "agent": agent.agent_id,
        "agent_name": agent.name,
        "injection": made["injection_id"],
        "position": position,
        "chars": len(content),
        "from": str(ctx.actor),
    }
    journal.record(
        tx,
        "completion:injected",
        facts,
        ctx,
        agent_id=agent.agent_id,
        orchestration_id=agent.orchestration_id,
        routable=False,
    )
    return waiting + 1


def bind_injections(tx: Tx, session_id: str, turn_id: str) -> list[Injection]:
    """Give a turn that starts all the words that wait in its session, in the order in which they came.

    They stay with it through every retry and take-over. Nothing waits: an empty list.
    """
    rows = tx.all("agents.bind_injections", {"session_id": session_id, "turn_id": turn_id})
    return [_injection(row) for row in sorted(rows, key=lambda row: row["injection_id"])]


def release_injections(tx: Tx, turn_id: str) -> None:
    """Let the words of a turn that ended without an answer wait for the next one: they were never heard."""
    tx.run("agents.release_injections", {"turn_id": turn_id})


def _injection(row: Row) -> Injection:
    return Injection(
        injection_id=row["injection_id"],
        position=row["position"],
        content=row["content"],
        created_by=row["created_by"],
    )
