"""Answers of simulated agents: the scripted provider, with nothing behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ksi_mcp.errors import Invalid
from ksi_mcp.providers.base import Message, Request, ToolResult
from ksi_mcp.providers.script import Planned, Script
from ksi_mcp.providers.script_format import ScriptSpec
from ksi_mcp.routing.recording import AgentFacts
from ksi_mcp.routing.rehearsing import Reply

MAX_ROUNDS: Final = 8
MAX_TRIES: Final = 5
"""So often a call that fails is made again."""
MAX_MESSAGES: Final = 200
"""Of what an agent was told and said before."""
MAX_TEXT_BYTES: Final = 40 * 1024
"""Of an answer, in its event."""
_NOT_RUN: Final = "not run: a replay has no effect on anything"


class ScriptedAnswers:
    """How simulated turns end, by a script. An agent remembers the turns that this replay gave it, and no others."""

    def __init__(self, script: ScriptSpec, agents: Mapping[str, AgentFacts]) -> None:
        self._script = Script(script)
        self._agents = agents
        self._said: dict[str, list[Message]] = {}

    def __call__(self, agent_id: str, prompt: str) -> Reply:
        """What comes of a prompt. Tools are not run: the model is told so."""
        agent = self._agents[agent_id]
        earlier = self._said.setdefault(agent_id, [])
        said = [*earlier, Message(role="user", blocks=(prompt,))]
        not_run, text = 0, ""
        for _ in range(MAX_ROUNDS):
            request = Request(
                model=agent.model,
                system=agent.system,
                messages=tuple(said),
                max_tokens=agent.max_tokens,
                agent=agent.name,
            )
            try:
                planned = self._asked(request)
            except Invalid as failure:
                return _failed("", failure.message, "task", not_run)
            if planned.fail is not None:
                error = planned.fail.message or f"the scripted call failed: {planned.fail.kind}"
                return _failed(planned.partial(), error, "infra", not_run)
            text = planned.text
            said.append(Message(role="assistant", blocks=(*((text,) if text.strip() else ()), *planned.tool_uses)))
            if not planned.tool_uses:
                break
            results = (ToolResult(tool_use_id=use.id, content=_NOT_RUN, is_error=True) for use in planned.tool_uses)
            said.append(Message(role="user", blocks=tuple(results)))
            not_run += len(planned.tool_uses)
        self._said[agent_id] = said[-MAX_MESSAGES:]
        return Reply(name="completion:result", data={"status": "done", **_cut(text)}, not_run=not_run)

    def _asked(self, request: Request) -> Planned:
        planned = self._script.answer(request)
        for _ in range(MAX_TRIES - 1):
            if planned.fail is None:
                break
            planned = self._script.answer(request)
        return planned


def _failed(text: str, error: str, error_class: str, not_run: int) -> Reply:
    data = {"status": "failed", **_cut(text), "error": error[:2000], "error_class": error_class}
    return Reply(name="completion:failed", data=data, not_run=not_run)


def _cut(text: str) -> dict[str, Any]:
    raw = text.encode("utf-8", "replace")
    if len(raw) <= MAX_TEXT_BYTES:
        return {"text": raw.decode()}
    return {"text": raw[:MAX_TEXT_BYTES].decode("utf-8", "ignore"), "truncated": True}
