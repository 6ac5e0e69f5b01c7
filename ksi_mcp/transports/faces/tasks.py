"""The Tasks extension of MCP: a client hands a call that waits over, and asks about it from time to time.

Only clients that declare it, request by request, meet it: for all others such calls wait, as they always do.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from mcp import MCPError
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver import require_client_extension
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp.types import CallToolRequestParams, CallToolResult, ElicitRequest, ElicitResult, RequestParams
from mcp.types.jsonrpc import HEADER_MISMATCH, INTERNAL_ERROR, INVALID_PARAMS
from mcp.types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import Field, ValidationError

from ksi_mcp.app import App
from ksi_mcp.errors import Invalid, KsiError, NotFound, Refused, StoreError
from ksi_mcp.permissions import Context
from ksi_mcp.tasks.desk import AtOnce, TaskDesk
from ksi_mcp.tasks.model import Question, Task
from ksi_mcp.tools.views import at
from ksi_mcp.transports.access import context_for
from ksi_mcp.transports.faces.confirm import shows_forms
from ksi_mcp.transports.faces.questions import act_on, asked_of, question_about
from ksi_mcp.transports.results import data_result, failed

logger = logging.getLogger(__name__)

TASKS: Final = "io.modelcontextprotocol/tasks"
POLL_MS: Final = 2_000
"""How long a client should wait before it asks again, while a task is young."""
POLL_LATER_MS: Final = 5_000
YOUNG_MS: Final = 60_000

RequestContext = ServerRequestContext[Any, Any]


class TaskParams(RequestParams):
    """Of `tasks/get` and `tasks/cancel`."""

    task_id: str = Field(alias="taskId", strict=True)


class UpdateParams(TaskParams):
    """Of `tasks/update`: responses, by the key of the request they answer."""

    input_responses: dict[str, Any] = Field(alias="inputResponses")


class TaskExtension(Extension):
    """Wraps `tools/call`, and serves `tasks/get`, `tasks/update` and `tasks/cancel`."""

    identifier = TASKS

    def __init__(self, app: App) -> None:
        self._toolbox = app.toolbox
        self._clock = app.services.clock
        self._desk = TaskDesk(app.services, app.toolbox)

    def methods(self) -> Sequence[MethodBinding]:
        """They are methods of the protocol from 2026-07-28 on; before, nobody knows them."""
        modern = frozenset(MODERN_PROTOCOL_VERSIONS)
        return (
            MethodBinding("tasks/get", TaskParams, self._get, protocol_versions=modern),
            MethodBinding("tasks/update", UpdateParams, self._update, protocol_versions=modern),
            MethodBinding("tasks/cancel", TaskParams, self._cancel, protocol_versions=modern),
        )

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: RequestContext, call_next: CallNext
    ) -> HandlerResult:
        """Hand a call over that would have to wait; let all others pass."""
        answers = params.input_responses is not None or params.request_state is not None
        if answers or not _declares(ctx):
            return await call_next(ctx)
        try:
            caller = context_for(ctx)
            taken = await self._desk.take(caller, params.name, dict(params.arguments or {}), may=_may_ask(ctx, caller))
        except KsiError as error:
            return failed(error.text(), error.code)
        except Exception:
            logger.exception("tool %r raised an unexpected exception", params.name)
            return failed("internal error; the server's log has it")
        if taken is None:
            return await call_next(ctx)
        if isinstance(taken, AtOnce):
            return data_result(dict(taken.data))
        # What it is waiting for may be somebody's answer already: that is said to who asks.
        return {"resultType": "task", **self._envelope(taken), "status": "working"}

    # -------------------------------------------------------------------------------------- the methods

    async def _get(self, ctx: RequestContext, params: TaskParams) -> HandlerResult:
        async with _answered(ctx, params.task_id):
            caller = context_for(ctx)
            state = await self._desk.look(caller, params.task_id, may=_may_ask(ctx, caller))
            found = self._envelope(state.task)
            if state.task.status == "completed":
                return {**found, "result": _wire(_result_of(state.task.result or {}))}
            if state.questions:
                requests = await self._requests(caller, state.questions)
                if requests:
                    return {**found, "inputRequests": requests}
                found["status"] = "working"
            return found

    async def _update(self, ctx: RequestContext, params: UpdateParams) -> HandlerResult:
        async with _answered(ctx, params.task_id):
            caller = context_for(ctx)
            state = await self._desk.look(caller, params.task_id, may=_may_ask(ctx, caller))
            # What is not asked, or not any more, is ignored, as the protocol wants it.
            given = [
                (question, _answer_of(question, params.input_responses[question.key]))
                for question in state.questions
                if question.key in params.input_responses
            ]
            for question, answer in given:
                await self._act(caller, params.task_id, question, answer)
        return {}

    async def _cancel(self, ctx: RequestContext, params: TaskParams) -> HandlerResult:
        async with _answered(ctx, params.task_id):
            await self._desk.cancel(context_for(ctx), params.task_id)
        return {}

    # ------------------------------------------------------------------------------------------ private

    def _envelope(self, task: Task) -> dict[str, Any]:
        young = self._clock.now_ms() - task.created_at_ms < YOUNG_MS
        fields = {
            "taskId": task.task_id,
            "status": task.status,
            "statusMessage": task.message,
            "createdAt": at(task.created_at_ms),
            "lastUpdatedAt": at(task.updated_at_ms),
            "ttlMs": task.expires_at_ms - task.created_at_ms,
            "pollIntervalMs": POLL_MS if young else POLL_LATER_MS,
        }
        return {name: value for name, value in fields.items() if value is not None}

    async def _requests(self, caller: Context, questions: Sequence[Question]) -> dict[str, Any]:
        """The questions as requests to the client, without those that are none any more."""
        requests = {}
        for question in questions:
            try:
                asked = await question_about(self._toolbox, caller, [question.turn])
            except (NotFound, Refused):  # what it is about is gone, or none of the caller's any more
                continue
            if asked is None:
                continue
            _, _, form = asked
            if question.why is not None:
                form = form.model_copy(update={"message": f"That was not taken: {question.why}\n\n{form.message}"})
            requests[question.key] = _wire(ElicitRequest(params=form))
        return requests

    async def _act(self, caller: Context, task_id: str, question: Question, answer: ElicitResult) -> None:
        why, again = None, False
        try:
            if await act_on(self._toolbox, caller, question.kind, question.turn, answer):
                return
        except StoreError:
            raise
        except KsiError as error:  # a better answer can help against Invalid only
            why, again = error.text(), isinstance(error, Invalid)
        await self._desk.answered(caller, task_id, question, why=why, again=again)


def _declares(ctx: RequestContext) -> bool:
    """Whether this very request comes from a client that can be given a task."""
    capabilities = ctx.session.client_capabilities
    declared = capabilities.extensions if capabilities is not None else None
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS and TASKS in (declared or {})


def _may_ask(ctx: RequestContext, caller: Context) -> frozenset[str]:
    return asked_of(caller) if shows_forms(ctx.session.client_capabilities) else frozenset()


@asynccontextmanager
async def _answered(ctx: RequestContext, task_id: str) -> AsyncIterator[None]:
    """The checks of every request about a task, and our failures as errors of the protocol."""
    require_client_extension(ctx, TASKS)
    _check_routing(ctx, task_id)
    try:
        yield
    except NotFound as missing:
        raise MCPError(code=INVALID_PARAMS, message=missing.text()) from missing
    except KsiError as error:
        raise MCPError(code=INTERNAL_ERROR, message=error.text()) from error
    except MCPError:
        raise
    except Exception as failure:
        logger.exception("a request about a task failed")
        raise MCPError(code=INTERNAL_ERROR, message="internal error; the server's log has it") from failure


def _check_routing(ctx: RequestContext, task_id: str) -> None:
    """What lies between has routed the request by this header; without one there was nothing to route by."""
    headers: Mapping[str, str] = {} if ctx.request is None else ctx.request.headers
    named = headers.get(MCP_NAME_HEADER)
    if named is not None and decode_header_value(named) != task_id:
        raise MCPError(code=HEADER_MISMATCH, message=f"header {MCP_NAME_HEADER} does not name the task of the body")


def _answer_of(question: Question, value: object) -> ElicitResult:
    try:
        return ElicitResult.model_validate(value, by_name=False)
    except ValidationError:
        raise MCPError(
            code=INVALID_PARAMS,
            message=f"inputResponses[{question.key!r}] is no answer to an elicitation; nothing was done: "
            'send {"action": "accept" | "decline" | "cancel", "content": {...}}',
        ) from None


def _result_of(stored: Mapping[str, Any]) -> CallToolResult:
    return failed(str(stored["error"])) if "error" in stored else data_result(dict(stored.get("data") or {}))


def _wire(model: CallToolResult | ElicitRequest) -> dict[str, Any]:
    return model.model_dump(by_alias=True, mode="json", exclude_none=True)
