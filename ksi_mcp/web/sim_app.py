"""The simulated APIs as an ASGI app: `sim.py` puts it behind a socket."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Final, Literal

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ksi_mcp.clock import Clock
from ksi_mcp.errors import Invalid
from ksi_mcp.providers.base import Request
from ksi_mcp.providers.script import Planned, Script, Situation, request_tokens
from ksi_mcp.web import sim_openai
from ksi_mcp.web import sim_wire as wire
from ksi_mcp.web.sim_batches import SimBatches
from ksi_mcp.web.sim_dialect import Dialect, MessagesDialect
from ksi_mcp.web.sim_openai import ChatDialect

MAX_BODY_BYTES: Final = 32_000_000
_LOGGED: Final = 10_000
_PROMPT_CHARS: Final = 200
_SHOWN_LIMIT: Final = 4_000  # requests a minute, in the headers, when there is no limit

Outcome = Literal["ok", "error", "cut", "left"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimLimits:
    """What the simulator admits. Beyond it a request gets 429 with `retry-after`. None is no limit."""

    requests_per_second: float | None = None
    max_in_flight: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimRequest:
    """A request as it went. `status` is None if nothing was answered; `in_flight` counts itself.

    `outcome`: `ok` and `error` were answered in full, `cut` was cut by the script, `left` by the client.
    """

    number: int
    agent: str
    model: str
    turn: int
    round: int
    prompt: str
    stream: bool
    rule: str
    status: int | None
    outcome: Outcome
    started_s: float
    ended_s: float
    in_flight: int


class SimLog:
    """The last 10,000 requests that ended, and how many were under way at once."""

    def __init__(self) -> None:
        self.requests: deque[SimRequest] = deque(maxlen=_LOGGED)
        self.started = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self._idle = asyncio.Event()

    def start(self) -> int:
        """Count a request in; return its number, from 1."""
        self.started += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self._idle.clear()
        return self.started

    def end(self, request: SimRequest) -> None:
        """Count it out."""
        self.requests.append(request)
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until no request is under way."""
        if self.in_flight:
            await self._idle.wait()


class Simulator:
    """The API. `cut` closes the connection of a scope; without it a cut is an answer that stays incomplete.

    `heard` is told the body of every call of a model, as it came.
    """

    def __init__(self, script: Script, *, clock: Clock, limits: SimLimits) -> None:
        self.script = script
        self.clock = clock
        self.limits = limits
        self.log = SimLog()
        self.cut: Callable[[Scope], bool] = lambda _: False
        self.heard: Callable[[bytes], None] = lambda _: None
        self._tokens = self._burst()
        self._refilled_s = clock.monotonic_s()
        self._batches = SimBatches(script, clock, read_body=read_body, headers=self.headers, admit=self.admit)

    def app(self) -> Starlette:
        """The API as an ASGI app."""
        return Starlette(
            routes=[
                Route("/v1/messages", self._messages, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                *self._batches.routes(),
                Route("/v1/messages/count_tokens", self._count_tokens, methods=["POST"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{model}", self._model, methods=["GET"]),
                Route("/_sim/log", self._show_log, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _unknown},
        )

    def admit(self, in_flight: int) -> None:
        """Raise the 429 of a limit that is passed."""
        most, rate = self.limits.max_in_flight, self.limits.requests_per_second
        if most is not None and in_flight > most:
            raise wire.WireError(f"more than {most} concurrent requests", status=429, retry_after_s=0.1)
        if rate is None:
            return
        now_s = self.clock.monotonic_s()
        self._tokens = min(self._burst(), self._tokens + (now_s - self._refilled_s) * rate)
        self._refilled_s = now_s
        if self._tokens < 1:
            raise wire.WireError(
                f"more than {rate:g} requests per second", status=429, retry_after_s=(1 - self._tokens) / rate
            )
        self._tokens -= 1

    def headers(self, request_id: str, retry_after_s: float | None = None) -> dict[str, str]:
        """The headers of every answer."""
        rate = self.limits.requests_per_second
        shown = _SHOWN_LIMIT if rate is None else math.ceil(rate * 60)
        reset = datetime.fromtimestamp(self.clock.now_ms() // 1000, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        headers = {
            "request-id": request_id,
            "anthropic-ratelimit-requests-limit": str(shown),
            "anthropic-ratelimit-requests-remaining": str(shown if rate is None else max(0, int(self._tokens))),
            "anthropic-ratelimit-requests-reset": reset,
        }
        if retry_after_s is not None:
            headers["retry-after"] = str(math.ceil(retry_after_s))
            headers["retry-after-ms"] = str(math.ceil(retry_after_s * 1000))
        return headers

    def _burst(self) -> float:
        return max(1.0, self.limits.requests_per_second or 1.0)

    async def _messages(self, http: HttpRequest) -> Response:
        return _Exchange(self, http, MessagesDialect())

    async def _chat(self, http: HttpRequest) -> Response:
        return _Exchange(self, http, ChatDialect())

    async def _count_tokens(self, http: HttpRequest) -> Response:
        try:
            request, _ = wire.parse_request(await read_body(http) or b"", counting=True)
        except wire.WireError as error:
            return self.refusal(error, "req_count")
        return JSONResponse({"input_tokens": request_tokens(request)}, headers=self.headers("req_count"))

    async def _models(self, http: HttpRequest) -> Response:
        body = wire.models_body() if _asks_anthropic(http) else sim_openai.models_body()
        return JSONResponse(body, headers=self.headers("req_models"))

    async def _model(self, http: HttpRequest) -> Response:
        model = http.path_params["model"]
        body = wire.model_body(model) if _asks_anthropic(http) else sim_openai.model_body(model)
        return JSONResponse(body, headers=self.headers("req_model"))

    async def _show_log(self, _: HttpRequest) -> Response:
        log = self.log
        return JSONResponse(
            {
                "requests": [asdict(request) for request in log.requests],
                "started": log.started,
                "in_flight": log.in_flight,
                "max_in_flight": log.max_in_flight,
            }
        )

    def refusal(self, error: wire.WireError, request_id: str, dialect: Dialect | None = None) -> JSONResponse:
        """An error as an answer, in the words of the Messages API unless others are given."""
        words = dialect or MessagesDialect()
        return JSONResponse(
            words.error(error.status, error.message, request_id),
            status_code=error.status,
            headers=words.headers(self.headers(request_id, error.retry_after_s)),
        )


class _Exchange(Response):
    """One call of a model, watched for the client leaving."""

    def __init__(self, simulator: Simulator, http: HttpRequest, dialect: Dialect) -> None:
        super().__init__()
        self._dialect = dialect
        self._sim = simulator
        self._http = http
        number = simulator.log.start()
        now_s = simulator.clock.monotonic_s()
        self._request_id = f"req_{number:016d}"
        self._seen = SimRequest(
            number=number,
            agent="",
            model="",
            turn=0,
            round=0,
            prompt="",
            stream=False,
            rule="",
            status=None,
            outcome="left",
            started_s=now_s,
            ended_s=now_s,
            in_flight=simulator.log.in_flight,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            # Read before anybody watches: from here on the next message can only say that the client left.
            raw = await read_body(self._http)
            if raw is not None:
                self._sim.heard(raw)
            work = asyncio.create_task(self._answer(raw, scope, receive, send))
            tasks = [work, asyncio.create_task(_left(receive))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        except ClientDisconnect:  # while it was still sending
            return
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._sim.log.end(replace(self._seen, ended_s=self._sim.clock.monotonic_s()))

    async def _answer(self, raw: bytes | None, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            request, stream = self._checked(raw)
            self._note(request, stream=stream)
            self._sim.admit(self._seen.in_flight)
            planned = self._plan(request)
            self._seen = replace(self._seen, rule=planned.rule)
            if planned.latency_s > 0:
                await self._sim.clock.sleep(planned.latency_s)
            if planned.fail is not None:
                await self._fail(planned, scope, send, stream=stream)
                return
        except wire.WireError as error:
            response = self._sim.refusal(error, self._request_id, self._dialect)
            await response(scope, receive, send)
            self._seen = replace(self._seen, status=error.status, outcome="error")
            return
        self._seen = replace(self._seen, status=200)
        message_id = f"msg_{self._seen.number:016d}"
        if stream:
            await self._begin(send)
            await _send_all(send, self._dialect.begin(planned, message_id))
            await _send_all(send, self._dialect.rest(planned))
            await send({"type": "http.response.body", "body": b""})
        else:
            headers = self._dialect.headers(self._sim.headers(self._request_id))
            await JSONResponse(self._dialect.whole(planned, message_id), headers=headers)(scope, receive, send)
        self._seen = replace(self._seen, outcome="ok")

    def _checked(self, raw: bytes | None) -> tuple[Request, bool]:
        if raw is None:
            raise wire.WireError("Request exceeds the maximum size", status=413)
        return self._dialect.parse(raw, self._http.headers)

    async def _fail(self, planned: Planned, scope: Scope, send: Send, *, stream: bool) -> None:
        """Fail as the script says. Refusals are raised, the rest happens here."""
        fail = planned.fail
        assert fail is not None  # noqa: S101 - the caller saw it
        status = fail.http_status
        message = fail.message or f"the script asks for {fail.kind}"
        if status is not None and (fail.kind != "mid_stream" or not stream):
            raise wire.WireError(message, status=status, retry_after_s=fail.retry_after_s)
        begins = fail.kind in ("mid_stream", "stall") or (fail.kind == "drop" and fail.after_chars is not None)
        if begins and stream:
            self._seen = replace(self._seen, status=200)
            await self._begin(send)
            await _send_all(send, self._dialect.begin(planned, f"msg_{self._seen.number:016d}"))
            if partial := planned.partial():
                await _send_all(send, self._dialect.partial(partial))
        if fail.kind == "mid_stream" and status is not None:
            data = self._dialect.broken(status, message, self._request_id)
            await send({"type": "http.response.body", "body": data})
            self._seen = replace(self._seen, outcome="error")
            return
        if fail.kind in ("drop", "transport"):
            self._seen = replace(self._seen, outcome="cut")
            if not self._sim.cut(scope):
                if not (begins and stream):
                    await self._begin(send)
                return
        await asyncio.Event().wait()  # silent until the client leaves, or has seen that the connection is gone

    async def _begin(self, send: Send) -> None:
        headers = self._dialect.headers(self._sim.headers(self._request_id))
        headers["content-type"] = "text/event-stream; charset=utf-8"
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    def _plan(self, request: Request) -> Planned:
        try:
            return self._sim.script.answer(request)
        except Invalid as error:
            raise wire.WireError(error.message) from error

    def _note(self, request: Request, *, stream: bool) -> None:
        situation = Situation.of(request)
        self._seen = replace(
            self._seen,
            agent=situation.agent,
            model=situation.model,
            turn=situation.turn,
            round=situation.round,
            prompt=situation.prompt[:_PROMPT_CHARS],
            stream=stream,
        )


async def read_body(http: HttpRequest) -> bytes | None:
    """Read the request's body to its end; None if it is larger than 32 MB."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in http.stream():
        size += len(chunk)
        if size <= MAX_BODY_BYTES:
            chunks.append(chunk)
    return b"".join(chunks) if size <= MAX_BODY_BYTES else None


def _asks_anthropic(http: HttpRequest) -> bool:
    return "anthropic-version" in http.headers


async def _send_all(send: Send, events: Iterable[bytes]) -> None:
    for data in events:
        await send({"type": "http.response.body", "body": data, "more_body": True})
        await asyncio.sleep(0)  # other requests get a turn, and a client that left is noticed


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unknown(http: HttpRequest, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return JSONResponse(wire.error_body(status, f"{http.method} is not known here", "req_unknown"), status_code=status)
