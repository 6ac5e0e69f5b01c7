"""Message Batches of the simulated API: each request is answered by the script, all are given out once all are ready.

A request is ready after its `latency_s`; `SimServer` sleeps for none of them. What a script lets fail with a status is
`errored`, also if the connection would be cut; `stall` and `timeout` are `expired`, at once: nobody waits a day for
them. Results come in the reverse order, since the API promises none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ksi_mcp.clock import Clock
from ksi_mcp.errors import Invalid
from ksi_mcp.providers.script import Planned, Script
from ksi_mcp.web import sim_wire as wire

KEPT: Final = 1_000
"""Batches; beyond them the oldest are gone."""
_MAX_REQUESTS: Final = 100_000
_DAY_MS: Final = 86_400_000
_PAGE: Final = 20
_MAX_PAGE: Final = 1_000
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_ENDS: Final = ("succeeded", "errored", "canceled", "expired")
_CUT_STATUS: Final = 500

ReadBody = Callable[[HttpRequest], Awaitable[bytes | None]]
Headers = Callable[[str, float | None], dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    custom_id: str
    result: dict[str, Any]
    ready_s: float


@dataclass(slots=True, kw_only=True)
class _Batch:
    batch_id: str
    entries: list[_Entry]
    created_ms: int
    ends_s: float
    canceled_s: float | None = None

    def has_ended(self, now_s: float) -> bool:
        return now_s >= self.ends_s or (self.canceled_s is not None and now_s >= self.canceled_s)

    def result_of(self, entry: _Entry) -> dict[str, Any]:
        if self.canceled_s is not None and entry.ready_s > self.canceled_s:
            return {"type": "canceled"}
        return entry.result


class SimBatches:
    """The batches that were submitted. `admit` raises the `WireError` of a limit that is passed."""

    def __init__(
        self, script: Script, clock: Clock, *, read_body: ReadBody, headers: Headers, admit: Callable[[int], None]
    ) -> None:
        self._script = script
        self._clock = clock
        self._read_body = read_body
        self._headers = headers
        self._admit = admit
        self._batches: dict[str, _Batch] = {}
        self._made = 0

    def routes(self) -> list[Route]:
        """The endpoints."""
        one = "/v1/messages/batches/{batch_id}"
        return [
            Route("/v1/messages/batches", self._guarded(self._create), methods=["POST"]),
            Route("/v1/messages/batches", self._guarded(self._list), methods=["GET"]),
            Route(one, self._guarded(self._retrieve), methods=["GET"]),
            Route(f"{one}/results", self._guarded(self._results), methods=["GET"]),
            Route(f"{one}/cancel", self._guarded(self._cancel), methods=["POST"]),
        ]

    def _guarded(
        self, endpoint: Callable[[HttpRequest], Awaitable[Response]]
    ) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def answer(http: HttpRequest) -> Response:
            try:
                _check_key(http)
                response = await endpoint(http)
                response.headers.update(self._headers("req_batch", None))
            except wire.WireError as error:
                return JSONResponse(
                    wire.error_body(error.status, error.message, "req_batch"),
                    status_code=error.status,
                    headers=self._headers("req_batch", error.retry_after_s),
                )
            return response

        return answer

    async def _create(self, http: HttpRequest) -> Response:
        raw = await self._read_body(http)
        if raw is None:
            raise wire.WireError("Request exceeds the maximum size", status=413)
        requests = _requests(raw)
        self._admit(1)
        now_s = self._clock.monotonic_s()
        self._made += 1
        batch_id = f"msgbatch_{self._made:016d}"
        entries = [self._entry(f"{batch_id}_{n}", item, now_s) for n, item in enumerate(requests)]
        batch = _Batch(
            batch_id=batch_id,
            entries=entries,
            created_ms=self._clock.now_ms(),
            ends_s=max(entry.ready_s for entry in entries),
        )
        self._batches[batch_id] = batch
        if len(self._batches) > KEPT:
            del self._batches[next(iter(self._batches))]
        return JSONResponse(self._shown(batch, http))

    async def _list(self, http: HttpRequest) -> Response:
        newest_first = [*reversed(self._batches.values())]
        ids = [batch.batch_id for batch in newest_first]
        after = http.query_params.get("after_id")
        start = ids.index(after) + 1 if after in ids else 0
        given = http.query_params.get("limit", str(_PAGE))
        if not given.isdecimal() or not 1 <= int(given[:9]) <= _MAX_PAGE:
            raise wire.WireError(f"limit: Input should be a whole number from 1 to {_MAX_PAGE}")
        page = newest_first[start : start + int(given)]
        return JSONResponse(
            {
                "data": [self._shown(batch, http) for batch in page],
                "has_more": start + len(page) < len(ids),
                "first_id": page[0].batch_id if page else None,
                "last_id": page[-1].batch_id if page else None,
            }
        )

    async def _retrieve(self, http: HttpRequest) -> Response:
        return JSONResponse(self._shown(self._found(http), http))

    async def _results(self, http: HttpRequest) -> Response:
        batch = self._found(http)
        if not batch.has_ended(self._clock.monotonic_s()):
            raise wire.WireError(f"Batch {batch.batch_id} has no results yet: it is still in progress", status=404)
        lines = (
            json.dumps({"custom_id": entry.custom_id, "result": batch.result_of(entry)}) + "\n"
            for entry in reversed(batch.entries)
        )
        return Response("".join(lines), media_type="application/x-jsonl")

    async def _cancel(self, http: HttpRequest) -> Response:
        batch = self._found(http)
        now_s = self._clock.monotonic_s()
        if batch.has_ended(now_s):
            raise wire.WireError(f"Batch {batch.batch_id} has ended and cannot be canceled")
        batch.canceled_s = now_s
        return JSONResponse({**self._shown(batch, http), "processing_status": "canceling"})

    def _found(self, http: HttpRequest) -> _Batch:
        batch_id = http.path_params["batch_id"]
        if batch_id not in self._batches:
            raise wire.WireError(f"No batch found with ID {batch_id[:100]}", status=404)
        return self._batches[batch_id]

    def _entry(self, message_id: str, item: Mapping[str, Any], now_s: float) -> _Entry:
        latency_s = 0.0
        try:
            request, _ = wire.parse_request(json.dumps(item["params"]).encode())
            planned = self._script.answer(request)
            latency_s, result = planned.latency_s, _result(planned, f"msg_{message_id}")
        except wire.WireError as error:
            result = _errored(error.status, error.message)
        except Invalid as error:
            result = _errored(400, error.message)
        return _Entry(custom_id=item["custom_id"], result=result, ready_s=now_s + latency_s)

    def _shown(self, batch: _Batch, http: HttpRequest) -> dict[str, Any]:
        ended = batch.has_ended(self._clock.monotonic_s())
        tally = dict.fromkeys(("processing", *_ENDS), 0)
        for entry in batch.entries:
            tally[batch.result_of(entry)["type"] if ended else "processing"] += 1
        created = _rfc3339(batch.created_ms)
        return {
            "id": batch.batch_id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": tally,
            "created_at": created,
            "expires_at": _rfc3339(batch.created_ms + _DAY_MS),
            "ended_at": _rfc3339(self._clock.now_ms()) if ended else None,
            "cancel_initiated_at": created if batch.canceled_s is not None else None,
            "archived_at": None,
            "results_url": f"{http.base_url}v1/messages/batches/{batch.batch_id}/results" if ended else None,
        }


def _check_key(http: HttpRequest) -> None:
    if "authorization" not in http.headers and "x-api-key" not in http.headers:
        raise wire.WireError("x-api-key header is required", status=401)


def _requests(raw: bytes) -> list[dict[str, Any]]:
    """The requests of a batch. What is wrong inside of one shows in its result, as with the real API."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise wire.WireError("The request body is not valid JSON") from None
    requests = body.get("requests") if isinstance(body, dict) else None
    if not isinstance(requests, list) or not 1 <= len(requests) <= _MAX_REQUESTS:
        raise wire.WireError(f"requests: Input should be a list of 1 to {_MAX_REQUESTS} requests")
    seen: set[str] = set()
    for number, item in enumerate(requests):
        custom_id = item.get("custom_id") if isinstance(item, dict) else None
        if not isinstance(custom_id, str) or not _CUSTOM_ID.fullmatch(custom_id):
            raise wire.WireError(f"requests.{number}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
        if custom_id in seen:
            raise wire.WireError(f"requests.{number}.custom_id: {custom_id} is not unique")
        seen.add(custom_id)
        if not isinstance(item.get("params"), dict):
            raise wire.WireError(f"requests.{number}.params: Input should be a valid dictionary")
    return requests


def _result(planned: Planned, message_id: str) -> dict[str, Any]:
    fail = planned.fail
    if fail is None:
        return {"type": "succeeded", "message": wire.message_body(planned, message_id, tier="batch")}
    if fail.kind in ("stall", "timeout"):
        return {"type": "expired"}
    return _errored(fail.http_status or _CUT_STATUS, fail.message or f"the script asks for {fail.kind}")


def _errored(status: int, message: str) -> dict[str, Any]:
    return {"type": "errored", "error": wire.error_body(status, message, "req_batch")}


def _rfc3339(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
