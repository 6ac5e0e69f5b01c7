"""A turn that waits for an answer asks the person at the client, where the client can ask.

Only while somebody waits for that very turn (`agent_wait`): a client repeats the call with the answer, so it must
be a call that changes nothing by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp.server.mcpserver import Context
from mcp.types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult

from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.tools.toolbox import Toolbox
from ksi_mcp.transports.confirm import MODERN, can_ask

WAIT = "agent_wait"

_KEY = "answer"
_SHOWN = 1_000
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"text": {"type": "string", "title": "Answer", "description": "in the agent's place"}},
    "required": ["text"],
}


async def take_answer(toolbox: Toolbox, name: str, context: Context[Any, Any]) -> bool:
    """If this call brings the answer to a question, give it to its turn; whether a question was asked before.

    Raises:
        KsiError: the answer was not taken, and why; the turn still waits.
    """
    asked = context.request_state or ""
    if name != WAIT or not asked.startswith(f"{_KEY}:"):
        return False
    await _answer(toolbox, asked.partition(":")[2], (context.input_responses or {}).get(_KEY))
    return True


async def ask_for_answer(
    toolbox: Toolbox, name: str, result: Mapping[str, Any], context: Context[Any, Any]
) -> InputRequiredResult | bool:
    """Ask about the first turn of the result that waits for an answer.

    From 2026-07-28 on the question is the result of the call, which the client repeats with the answer. Before,
    it is asked and answered in here: True says so, and that the call should be made again.

    Raises:
        KsiError: the answer was not taken, and why; the turn still waits.
    """
    if name != WAIT or not can_ask(context):
        return False
    waiting = next((turn for turn in result.get("turns", ()) if turn.get("parked_on") == "answer"), None)
    if waiting is None:
        return False
    question = _question(waiting)
    if (context.protocol_version or "") >= MODERN:
        request = ElicitRequest(params=ElicitRequestFormParams(message=question, requested_schema=_SCHEMA))
        return InputRequiredResult(input_requests={_KEY: request}, request_state=f"{_KEY}:{waiting['turn']}")
    answer = await context.session.elicit_form(question, _SCHEMA, related_request_id=context.request_id)
    return await _answer(toolbox, waiting["turn"], answer)


async def _answer(toolbox: Toolbox, turn: str, answer: object) -> bool:
    if not isinstance(answer, ElicitResult) or answer.action != "accept":
        return False
    text = (answer.content or {}).get("text")
    if not isinstance(text, str) or not text.strip():
        return False
    await toolbox.call(fresh_context(OPERATOR), "completion_answer", {"turn": turn, "text": text})
    return True


def _question(waiting: Mapping[str, Any]) -> str:
    parts = [f"Agent {waiting.get('agent_name') or waiting['agent']} needs an answer."]
    for label, key in (("Why", "question"), ("Its last reply", "partial_text")):
        if text := waiting.get(key):
            parts.append(f"{label}: {text if len(text) <= _SHOWN else text[:_SHOWN] + ' ...'}")
    return "\n\n".join(parts)
