"""The cache that finds the same question in other words.

Off unless the configuration has an embedder and the agent or the turn says `cache: semantic`; and in shadow mode, which
is the default, it serves nothing: it notes what it would have served, and whether the model then said the same.

Two prompts are taken for one if their likeness reaches the threshold *and* the guard (`paraphrase_guard`) finds nothing
that tells them apart; a threshold alone serves wrong answers, whatever it is (docs/providers.md has the figures).

Who shares answers: agents of one run with each other, and agents outside of any run with each other; in both cases only
under the same provider, model, system prompt, settings, expectation and embedder. A run's answers never reach another.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import mul
from typing import Final

from ksi_mcp.completions.embedding import Embedder, NoVector
from ksi_mcp.completions.looked import Looked, Nearest, Verdict
from ksi_mcp.completions.model import Loaded
from ksi_mcp.completions.paraphrase_guard import difference
from ksi_mcp.db import Tx
from ksi_mcp.errors import StoreError
from ksi_mcp.events.journal import Journal
from ksi_mcp.provider_config import SemanticConfig
from ksi_mcp.providers.base import Request
from ksi_mcp.providers.kinds import traits_of

__all__ = ["Looked", "Nearest", "SemanticCache", "Verdict", "nearest", "same_words", "scope_of"]

logger = logging.getLogger(__name__)

NOTED: Final = 0.85
"""Likeness from which a look is noted."""
MAX_LOOKS: Final = 10_000
"""Newest looks that are kept."""
MAX_PROMPT_CHARS: Final = 8_000
"""A longer prompt is not looked up: embedders read no more than some hundred words."""
NEAREST: Final = 8
"""So many of the nearest are shown to the guard: the very nearest may be the one that differs in a number."""
MAX_FLOATS: Final = 8_000_000
"""In memory, of all scopes but the one at hand: 32 MB."""

_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=dict).encode


Stamp = tuple[int, int | None, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Points:
    """The vectors of a scope as they were at some moment."""

    stamp: Stamp
    vectors: Mapping[int, array[float]]


class SemanticCache:
    """Looks for an answered prompt that asks the same, and learns answers.

    `look` awaits (the embedder, the store) and is called outside of transactions; `note` belongs into the transaction
    that serves the round or lets it out, `learn` into the one that stores the model's answer. It never fails a turn.
    """

    def __init__(self, journal: Journal, config: SemanticConfig) -> None:
        self._journal = journal
        self._config = config
        self._embedder = None if config.embedder is None else Embedder(config.embedder)
        self._points: dict[str, _Points] = {}

    def applies(self, item: Loaded, request: Request) -> bool:
        """Whether the next round of a turn is to be looked up: asked for, its first, of one prompt, without tools."""
        if self._embedder is None or (item.turn.cache or item.agent.settings.cache) != "semantic":
            return False
        traits = traits_of(item.choice.provider)
        if traits.agentic or traits.parks or request.behalf is not None or request.tools or item.rounds:
            return False
        prompt = item.turn.prompt
        if len(request.messages) != 1 or request.messages[0].blocks != (prompt,):
            return False
        return bool(prompt.strip()) and len(prompt) <= MAX_PROMPT_CHARS

    async def look(self, item: Loaded, request: Request) -> Looked | None:
        """The nearest answered prompt and what follows from it. None: the turn goes on without; the log says why."""
        if self._embedder is None:
            return None
        try:
            vector = await self._embedder.vector(item.turn.prompt)
        except NoVector as wrong:
            logger.warning("turn %s is not looked up in the semantic cache: %s", item.turn.turn_id, wrong)
            return None
        try:
            return await self._look(item, request, vector)
        except StoreError as failure:
            logger.warning("turn %s is not looked up in the semantic cache: %s", item.turn.turn_id, failure.text())
            return None

    async def _look(self, item: Loaded, request: Request, vector: array[float]) -> Looked:
        scope = scope_of(item, request, str(self._config.embedder))
        points = await self._read(scope)
        near = await asyncio.to_thread(nearest, vector, points.vectors, at_least=min(NOTED, self._config.threshold))
        found = await self._judged(item.turn.prompt, near) if near else []
        return self._verdict(scope, vector, found)

    def note(self, tx: Tx, item: Loaded, looked: Looked) -> int | None:
        """Record the look; the call whose answer is to be served, None if there is none (any more)."""
        tx.run("completions.semantic_relook", {"turn_id": item.turn.turn_id})
        found, verdict = looked.nearest, looked.verdict
        if found is None or verdict is None:
            return None
        if verdict == "served" and tx.one("completions.semantic_usable", {"call_id": found.call_id}) is None:
            return None
        values = {
            "turn_id": item.turn.turn_id,
            "scope": looked.scope,
            "prompt": item.turn.prompt,
            "call_id": found.call_id,
            "nearest": found.prompt,
            "score": found.score,
            "verdict": verdict,
            "reason": found.reason,
            "now_ms": tx.now_ms,
        }
        row = tx.one("completions.semantic_note", values)
        assert row is not None  # noqa: S101  RETURNING always has a row
        if (last := int(row["look_id"]) - MAX_LOOKS) > 0:
            tx.run("completions.semantic_trim_looks", {"last": last})
        return looked.serve

    def learn(self, tx: Tx, item: Loaded, looked: Looked, call_id: int, answer_text: str) -> None:
        """Keep a prompt that the model has answered to the end, and hold the answer against the nearest one's."""
        for row in tx.all("completions.semantic_open_look", {"turn_id": item.turn.turn_id}):
            same = same_words(str(row["answer"]), answer_text)
            tx.run("completions.semantic_compared", {"look_id": row["look_id"], "same": int(same)})
        if not answer_text.strip():
            return
        values = {"call_id": call_id, "scope": looked.scope, "prompt": item.turn.prompt, "vector": looked.vector}
        tx.run("completions.semantic_learn", {**values, "now_ms": tx.now_ms})
        tx.run("completions.semantic_trim", {"scope": looked.scope, "entries": self._config.entries})

    # ----------------------------------------------------------------------------- the points

    async def _read(self, scope: str) -> _Points:
        known = self._points.pop(scope, None)
        fresh = await self._journal.read(lambda tx: _load(tx, scope, known, limit=self._config.entries))
        self._points[scope] = fresh  # the last one used stands last
        total = sum(_floats(points) for points in self._points.values())
        while total > MAX_FLOATS and len(self._points) > 1:
            total -= _floats(self._points.pop(next(iter(self._points))))
        return fresh

    async def _judged(self, prompt: str, near: list[tuple[float, int]]) -> list[Nearest]:
        """The nearest whose answers are still there, with what the guard says; most alike first."""
        ids = json.dumps([call_id for _, call_id in near])
        rows = await self._journal.read(lambda tx: tx.all("completions.semantic_prompts", {"ids": ids}))
        prompts: dict[int, str] = {row["call_id"]: row["prompt"] for row in rows}
        return await asyncio.to_thread(
            lambda: [
                Nearest(call_id=call_id, prompt=prompts[call_id], score=score, reason=_reason(prompt, prompts[call_id]))
                for score, call_id in near
                if call_id in prompts
            ]
        )

    def _verdict(self, scope: str, vector: array[float], found: list[Nearest]) -> Looked:
        agreed = next((near for near in found if near.score >= self._config.threshold and near.reason is None), None)
        chosen = agreed or (found[0] if found else None)
        verdict: Verdict | None = None
        if agreed is not None:
            verdict = "served" if self._config.mode == "serve" else "would_serve"
        elif chosen is not None:
            verdict = "guarded" if chosen.score >= self._config.threshold else "below"
        return Looked(scope=scope, vector=vector.tobytes(), nearest=chosen, verdict=verdict)


def scope_of(item: Loaded, request: Request, embedder: str) -> str:
    """A hash of all that has to be equal for an answer to be good for another prompt, and of who may share it."""
    turn, agent = item.turn, item.agent
    expect = json.loads(turn.expect) if turn.expect is not None else agent.settings.expect
    runs = [agent.orchestration_id, turn.orchestration_id]
    model = [item.choice.provider, request.model, request.system, request.max_tokens, request.effort]
    text = _canonical([1, embedder, runs, model, request.output_schema, expect])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def nearest(vector: array[float], vectors: Mapping[int, array[float]], *, at_least: float) -> list[tuple[float, int]]:
    """(cosine, call id) of the most alike, most alike first and the newer of equals before; all have length 1."""
    size, ours = len(vector), vector.tolist()
    scored = ((sum(map(mul, ours, other)), call_id) for call_id, other in vectors.items() if len(other) == size)
    # Rounded: 32-bit floats make the same text 0.9999999 like itself.
    found = sorted(((round(score, 6), call_id) for score, call_id in scored if score >= at_least - 1e-6), reverse=True)
    return [(min(score, 1.0), call_id) for score, call_id in found[:NEAREST]]


def same_words(one: str, other: str) -> bool:
    """Whether two answers are the same but for case, space and a stop at the end."""
    return " ".join(one.casefold().split()).rstrip(".!") == " ".join(other.casefold().split()).rstrip(".!")


def _reason(prompt: str, other: str) -> str | None:
    if prompt == other:
        return None
    found = difference(prompt, other)
    return None if found is None else found.text()


def _load(tx: Tx, scope: str, known: _Points | None, *, limit: int) -> _Points:
    row = tx.one("completions.semantic_stamp", {"scope": scope})
    stamp: Stamp = (0, None, None) if row is None else (row["entries"], row["oldest"], row["newest"])
    if known is not None and known.stamp == stamp:
        return known
    ids: list[int] = [row["call_id"] for row in tx.all("completions.semantic_ids", {"scope": scope, "limit": limit})]
    have: Mapping[int, array[float]] = {} if known is None else known.vectors
    missing = json.dumps([call_id for call_id in ids if call_id not in have])
    new = {row["call_id"]: _decoded(row["vector"]) for row in tx.all("completions.semantic_vectors", {"ids": missing})}
    return _Points(stamp=stamp, vectors=dict(_both(ids, have, new)))


def _both(
    ids: Iterable[int], have: Mapping[int, array[float]], new: Mapping[int, array[float]]
) -> Iterable[tuple[int, array[float]]]:
    for call_id in ids:
        vector = have.get(call_id) or new.get(call_id)
        if vector is not None:
            yield call_id, vector


def _decoded(stored: bytes) -> array[float]:
    return array("f", stored[: len(stored) - len(stored) % 4])


def _floats(points: _Points) -> int:
    return sum(map(len, points.vectors.values()))
