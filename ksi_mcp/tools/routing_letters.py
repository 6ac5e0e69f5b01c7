"""Deliveries that failed: looked at, and tried again."""

from __future__ import annotations

import json
import logging
from typing import Annotated

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, Invalid, Refused, StoreError
from ksi_mcp.routing.letters import Letter, LetterFilter, Outcome, Redriven
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.selecting import AgentRef
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import at

logger = logging.getLogger(__name__)

MAX_DATA_CHARS = 400
"""Of the data of a letter in a list."""
MAX_REDRIVEN = 100
Ref = Annotated[str | None, Field(max_length=100)]


class LetterView(View):
    """A delivery that could not be made. `data` is what was to be delivered, or else the event's, cut."""

    dead_letter: int
    at: str
    event: str
    event_id: int
    source: str
    rule_id: str | None = None
    target: str | None = None
    reason: str
    data: str
    redriven_at: str | None = None
    redriven_by: str | None = None

    @classmethod
    def of(cls, letter: Letter) -> LetterView:
        """From the record."""
        text = json.dumps(letter.event.data if letter.data is None else letter.data, ensure_ascii=False)
        return cls(
            dead_letter=letter.dead_id,
            at=at(letter.at_ms),
            event=letter.event.name,
            event_id=letter.event.event_id,
            source=letter.event.source,
            rule_id=letter.rule_id,
            target=letter.target,
            reason=letter.reason,
            data=text if len(text) <= MAX_DATA_CHARS else text[:MAX_DATA_CHARS] + "...",
            redriven_at=None if letter.redriven_at_ms is None else at(letter.redriven_at_ms),
            redriven_by=letter.redriven_by,
        )


class LettersView(View):
    """Newest first."""

    dead_letters: list[LetterView]
    cursor: str | None = None


@tool(
    "routing_dead_letters",
    needs="base",
    effects="reads",
    title="List deliveries that failed",
    idempotent=True,
)
async def routing_dead_letters(
    call: Call,
    *,
    rule_id: Ref = None,
    orchestration: Ref = None,
    agent: Annotated[AgentRef | None, Field(description="about it, from it or to it")] = None,
    redriven: Annotated[bool | None, Field(description="true: those delivered later; null: all")] = False,
    limit: Annotated[int, Field(ge=1, le=50)] = 20,
    cursor: str | None = None,
) -> LettersView:
    """List deliveries that could not be made, with the reason. Mend the cause, then call routing_redrive."""

    def work(tx: Tx) -> LettersView:
        wanted = _wanted(tx, call, rule_id, orchestration, agent, redriven=redriven)
        page = call.svc.router.letters.page(tx, call.ctx, wanted, limit=limit, cursor=cursor)
        return LettersView(dead_letters=[LetterView.of(letter) for letter in page.letters], cursor=page.cursor)

    return await call.read(work)


class RedrivenView(View):
    """What became of one letter. `delivered` counts deliveries; `failed` ones stay open; `routed`: all of an event."""

    dead_letter: int
    outcome: Outcome
    delivered: int | None = None
    target: str | None = None
    reason: str | None = None
    data: str | None = None

    @classmethod
    def of(cls, result: Redriven) -> RedrivenView:
        """From the record; the data only where it was asked what would be delivered."""
        dry = result.outcome == "would_deliver"
        text = json.dumps(result.data, ensure_ascii=False) if dry and result.data is not None else None
        return cls(
            dead_letter=result.letter.dead_id,
            outcome=result.outcome,
            delivered=result.delivered or None,
            target=result.target,
            reason=result.reason,
            data=text if text is None or len(text) <= MAX_DATA_CHARS else text[:MAX_DATA_CHARS] + "...",
        )


class RedriveView(View):
    """How many letters were asked for, made and not, and what became of each. `cursor`: more of them are open."""

    asked: int
    ok: int
    failed: int
    letters: list[RedrivenView]
    dry_run: bool | None = None
    cursor: str | None = None


@tool("routing_redrive", needs="routing_control", effects="writes", title="Try failed deliveries again")
async def routing_redrive(
    call: Call,
    *,
    ids: Annotated[list[int] | None, Field(min_length=1, max_length=MAX_REDRIVEN)] = None,
    rule_id: Ref = None,
    orchestration: Ref = None,
    agent: Annotated[AgentRef | None, Field(description="about it, from it or to it")] = None,
    every: Annotated[bool, Field(description="all that are open, whatever they are of")] = False,
    dry_run: bool = False,
    limit: Annotated[int, Field(ge=1, le=MAX_REDRIVEN)] = 50,
    cursor: str | None = None,
) -> RedriveView:
    """Try dead letters again, by ids or by what they are of, the oldest first: each is delivered once, or stays open.

    By its rule as it is now (the current mapping, target and condition); where the rule is gone, to where it was to go.
    """
    by_filter = every or any(given is not None for given in (rule_id, orchestration, agent))
    if (ids is not None) == by_filter:
        raise Invalid(
            "which dead letters is not clear", hint="give ids, or rule_id, orchestration, agent or every=true"
        )
    await call.svc.router.refresh()
    letters = call.svc.router.letters

    def choose(tx: Tx) -> tuple[list[int], str | None]:
        if not dry_run and call.svc.router.is_paused(tx):
            raise Conflict(
                "routing is paused (safe mode): nothing is delivered",
                hint="dry_run=true says what would be; redrive when a server has started without it",
            )
        if ids is not None:
            chosen, more = list(dict.fromkeys(ids)), None
        else:
            wanted = _wanted(tx, call, rule_id, orchestration, agent, redriven=False)
            chosen, more = letters.waiting(tx, call.ctx, wanted, limit=limit, cursor=cursor)
        for dead_id in chosen:  # a refusal or an unknown id stops it before anything is delivered
            try:
                letters.check(tx, call.ctx, dead_id)
            except Conflict:
                continue
        return chosen, more

    def one(tx: Tx, dead_id: int) -> RedrivenView:
        try:
            return RedrivenView.of(letters.redrive(tx, call.ctx, dead_id, dry_run=dry_run))
        except Conflict as conflict:  # somebody else has done it
            outcome: Outcome = "would_fail" if dry_run else "failed"
            return RedrivenView(dead_letter=dead_id, outcome=outcome, reason=conflict.message)

    chosen, more = await call.read(choose)

    def whole(results: list[RedrivenView]) -> RedriveView:
        failed = sum(result.outcome in ("failed", "would_fail") for result in results)
        return RedriveView(
            asked=len(results),
            ok=len(results) - failed,
            failed=failed,
            letters=results,
            dry_run=dry_run or None,
            cursor=more,
        )

    if dry_run:
        return await call.read(lambda tx: whole([one(tx, dead_id) for dead_id in chosen]))
    if call.ctx.slot is not None or call.guard is not None:  # its result is stored with its effect, or neither
        return await call.commit(lambda tx: whole([one(tx, dead_id) for dead_id in chosen]))
    results: list[RedrivenView] = []
    for dead_id in chosen:
        try:
            results.append(await call.commit(lambda tx, dead_id=dead_id: one(tx, dead_id)))  # type: ignore[misc]
        except (Refused, StoreError):
            raise
        except Exception:  # what broke the delivery the first time may do so again; the others go on
            logger.exception("dead letter %d met an error that nobody expected", dead_id)
            reason = "internal error; the server's log has it"
            results.append(RedrivenView(dead_letter=dead_id, outcome="failed", reason=reason))
    return whole(results)


def _wanted(
    tx: Tx, call: Call, rule_id: str | None, orchestration: str | None, agent: str | None, *, redriven: bool | None
) -> LetterFilter:
    run = None if orchestration is None else call.svc.conductor.find(tx, call.ctx, orchestration).orchestration_id
    agent_id = None if agent is None else reach.find(tx, call.ctx, agent).agent_id
    return LetterFilter(rule_id=rule_id, agent_id=agent_id, orchestration_id=run, redriven=redriven)


TOOLS = (routing_dead_letters, routing_redrive)
