"""A turn that waits for an answer, or for room in its budget, asks the person at the client, where it can ask.

Only while somebody waits for that very turn (`agent_wait`): a client repeats the call with the answer, so it must
be a call that changes nothing by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from mcp.server.mcpserver import Context
from mcp.types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult

from ksi_mcp.permissions import Context as Caller
from ksi_mcp.tools.toolbox import Toolbox
from ksi_mcp.transports.access import context_for
from ksi_mcp.transports.faces.confirm import MODERN, can_ask
from ksi_mcp.transports.faces.quoting import quoted

WAIT: Final = "agent_wait"

_SHOWN: Final = 1_000
_ANSWER: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"text": {"type": "string", "title": "Answer", "description": "in the agent's place"}},
    "required": ["text"],
}
_LIMITS: Final = {
    "usd": ("limit_usd", "number", "US dollars"),
    "tokens": ("limit_tokens", "integer", "tokens"),
    "turns": ("limit_turns", "integer", "turns"),
    "seconds": ("limit_seconds", "integer", "seconds"),
}
"""The kinds of limits: where an account has them, what a form takes, and what they are counted in."""


async def take_answer(toolbox: Toolbox, name: str, context: Context[Any, Any]) -> bool:
    """If this call brings the answer to a question, act on it; whether a question was asked before.

    Raises:
        KsiError: the answer was not taken, and why; the turn still waits.
    """
    kind, _, about = (context.request_state or "").partition(":")
    turn, _, account = about.partition(":")
    if name != WAIT or not turn or kind not in ("answer", "budget"):
        return False
    answer = (context.input_responses or {}).get(kind)
    await act_on(toolbox, context_for(context), kind, {"turn": turn, "account": account}, answer)
    return True


async def ask_for_answer(
    toolbox: Toolbox, name: str, result: Mapping[str, Any], context: Context[Any, Any]
) -> InputRequiredResult | bool:
    """Ask about the first turn of the result that waits for somebody.

    From 2026-07-28 on the question is the result of the call, which the client repeats with the answer. Before,
    it is asked and answered in here: True says so, and that the call should be made again.

    Raises:
        KsiError: the answer was not taken, and why; the turn still waits.
    """
    if name != WAIT or not can_ask(context):
        return False
    question = await question_about(toolbox, context_for(context), result.get("turns", ()))
    if question is None:
        return False
    kind, waiting, form = question
    if (context.protocol_version or "") >= MODERN:
        state = f"{kind}:{waiting['turn']}:{waiting.get('account') or ''}"
        return InputRequiredResult(input_requests={kind: ElicitRequest(params=form)}, request_state=state)
    answer = await context.session.elicit_form(
        form.message, form.requested_schema, related_request_id=context.request_id
    )
    return await act_on(toolbox, context_for(context), kind, waiting, answer)


def asked_of(caller: Caller) -> frozenset[str]:
    """What somebody can be asked about: an agent gives no money, and who only looks gives nothing."""
    return frozenset({"operator": ("answer", "budget"), "agent": ("answer",)}.get(caller.actor.kind, ()))


async def question_about(
    toolbox: Toolbox, caller: Caller, turns: Any
) -> tuple[str, Mapping[str, Any], ElicitRequestFormParams] | None:
    """What to ask about the first of these turns (as `agent_wait` shows them) that the caller can do something about.

    Returns what it waits for (`answer` or `budget`), the turn, and the question; None: there is nothing to ask.
    """
    may = asked_of(caller)
    waiting = next((turn for turn in turns if turn.get("parked_on") in may), None)
    if waiting is None:
        return None
    kind = waiting["parked_on"]
    if kind == "answer":
        return kind, waiting, ElicitRequestFormParams(message=_question(waiting), requested_schema=_ANSWER)
    account = await _account(toolbox, caller, waiting["account"])
    limits = {each: account[held] for each, (held, _, _) in _LIMITS.items() if account.get(held) is not None}
    if not limits:
        return None
    form = ElicitRequestFormParams(message=_need(waiting, account), requested_schema=_raise_form(limits))
    return kind, waiting, form


async def act_on(toolbox: Toolbox, caller: Caller, kind: str, asked: Mapping[str, Any], answer: object) -> bool:
    """Give an accepted answer to its turn, or its budget the new limits. False: there is nothing to act on.

    `asked`: the turn that was asked about, and the `account` in which it then had no room.

    Raises:
        KsiError: the answer was not taken, and why; the turn still waits.
    """
    if not isinstance(answer, ElicitResult) or answer.action != "accept":
        return False
    given, turn = answer.content or {}, asked["turn"]
    if kind == "answer":
        text = given.get("text")
        if not isinstance(text, str) or not text.strip():
            return False
        await toolbox.call(caller, "completion_answer", {"turn": turn, "text": text})
        return True
    found = (await toolbox.call(caller, "completion_status", {"turn": turn})).data
    if found.get("parked_on") != "budget" or found["account"] != asked["account"]:
        return True  # somebody else has made room meanwhile; a limit that was agreed to is for that account only
    account = await _account(toolbox, caller, found["account"])
    raised = {
        each: value
        for each, (held, _, _) in _LIMITS.items()
        if _is_number(value := given.get(each)) and account.get(held) is not None and value > account[held]
    }
    if not raised:
        return False
    await toolbox.call(caller, "budget_set", {"account": found["account"], "limits": raised})
    return True


async def _account(toolbox: Toolbox, caller: Caller, account: str) -> dict[str, Any]:
    found = (await toolbox.call(caller, "budget_status", {"account": account})).data["accounts"]
    return dict(found[-1])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _question(waiting: Mapping[str, Any]) -> str:
    parts = [f"Agent {waiting.get('agent_name') or waiting['agent']} needs an answer."]
    for label, key in (("Why", "question"), ("Its last reply", "partial_text")):
        if text := waiting.get(key):
            parts.append(f"{label}:\n{quoted(text, _SHOWN)}")
    return "\n\n".join(parts)


def _need(waiting: Mapping[str, Any], account: Mapping[str, Any]) -> str:
    spent = f"${account['spent_usd']:g}, {account['spent_tokens']:,} tokens and {account['spent_turns']:,} turns"
    return (
        f"Agent {waiting.get('agent_name') or waiting['agent']} waits for room in its budget.\n\n"
        f"{quoted(waiting.get('question') or '', _SHOWN)}\n\nAccount {account['account']} has spent {spent}. "
        "Raise a limit to let it go on; leave them as they are, and it goes on waiting."
    )


def _raise_form(limits: Mapping[str, float]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            each: {"type": _LIMITS[each][1], "title": f"Limit in {_LIMITS[each][2]}", "default": now, "minimum": now}
            for each, now in limits.items()
        },
    }
