"""What the semantic cache has done, or would have done: the figures to set its threshold by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import Field

from ksi_mcp.db import Row, Tx
from ksi_mcp.errors import Invalid
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import at

MAX_SHOWN_CHARS: Final = 300
"""Of a prompt in the report."""
_MAX_CURSOR_DIGITS: Final = 18


class Compared(View):
    """Looks, and how the answer that was there compares with the one that the model gave, where it has."""

    looks: int
    same_answer: int
    other_answer: int

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Compared | None:
        """The sum of these rows; None if there are none."""
        looks = sum(row["looks"] for row in rows)
        if not looks:
            return None
        same, other = (sum(row["looks"] for row in rows if row["same_answer"] == said) for said in (1, 0))
        return cls(looks=looks, same_answer=same, other_answer=other)

    @property
    def rate(self) -> float | None:
        """How many of the answers that can be compared were others; None if none can."""
        compared = self.same_answer + self.other_answer
        return round(self.other_answer / compared, 4) if compared else None


class Band(View):
    """The looks of these hundredths of likeness. `agreed`: the guard found nothing that tells the prompts apart."""

    score: float
    agreed: Compared | None = None
    refused: Compared | None = None


class Pair(View):
    """A prompt and the nearest answered one. `reason`: what the guard found to tell them apart."""

    turn: str
    agent: str | None = None
    at: str
    prompt: str
    nearest: str
    nearest_call: int
    score: float
    verdict: str
    reason: str | None = None
    same_answer: bool | None = None


class CacheReport(View):
    """`false_hit_rate`: of what it would have served (shadow mode), how much the model then answered in other words.

    That is an upper bound: a model may say one thing in two ways. Read the pairs with same_answer=false.
    """

    on: bool
    mode: str
    threshold: float
    entries: int
    scopes: int
    served: int
    would_serve: Compared | None = None
    false_hit_rate: float | None = None
    guarded: Compared | None = None
    below: Compared | None = None
    by_score: list[Band]
    pairs: list[Pair]
    cursor: str | None = None


@tool(
    "completion_cache_report",
    needs="operator",
    effects="reads",
    title="What the semantic cache would serve",
    idempotent=True,
)
async def completion_cache_report(
    call: Call,
    *,
    verdict: Literal["served", "would_serve", "guarded", "below"] | None = None,
    same_answer: Annotated[
        bool | None, Field(description="false: only pairs that the model answered in other words")
    ] = None,
    limit: Annotated[int, Field(ge=1, le=50)] = 20,
    cursor: str | None = None,
) -> CacheReport:
    """Return what the semantic cache served or (in shadow mode) would have served, and the pairs of prompts.

    It is set up in config.yaml (semantic_cache); only the newest looks are kept, and only near ones are noted.
    """
    values = {
        "before": None if cursor is None else _place(cursor),
        "verdict": verdict,
        "same": None if same_answer is None else int(same_answer),
        "limit": limit + 1,
    }

    def work(tx: Tx) -> CacheReport:
        tally = tx.all("completions.semantic_tally")
        size = tx.one("completions.semantic_size")
        rows = tx.all("completions.semantic_page", values)
        by_verdict = {
            known: Compared.of([row for row in tally if row["verdict"] == known])
            for known in ("served", "would_serve", "guarded", "below")
        }
        would, served = by_verdict["would_serve"], by_verdict["served"]
        config = call.svc.config.semantic_cache
        return CacheReport(
            on=config.embedder is not None,
            mode=config.mode,
            threshold=config.threshold,
            entries=0 if size is None else size["entries"],
            scopes=0 if size is None else size["scopes"],
            served=0 if served is None else served.looks,
            would_serve=would,
            false_hit_rate=None if would is None else would.rate,
            guarded=by_verdict["guarded"],
            below=by_verdict["below"],
            by_score=_bands(tally),
            pairs=[_pair(row) for row in rows[:limit]],
            cursor=str(rows[limit - 1]["look_id"]) if len(rows) > limit else None,
        )

    return await call.read(work)


def _bands(tally: Sequence[Row]) -> list[Band]:
    scores = sorted({row["hundredths"] for row in tally}, reverse=True)
    return [
        Band(
            score=score / 100,
            agreed=Compared.of([row for row in tally if row["hundredths"] == score and not row["refused"]]),
            refused=Compared.of([row for row in tally if row["hundredths"] == score and row["refused"]]),
        )
        for score in scores
    ]


def _pair(row: Row) -> Pair:
    return Pair(
        turn=row["turn_id"],
        agent=row["session_id"],
        at=at(row["at_ms"]),
        prompt=_shown(row["prompt"]),
        nearest=_shown(row["nearest"]),
        nearest_call=row["call_id"],
        score=round(row["score"], 4),
        verdict=row["verdict"],
        reason=row["reason"],
        same_answer=None if row["same_answer"] is None else bool(row["same_answer"]),
    )


def _shown(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."


def _place(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= _MAX_CURSOR_DIGITS):
        raise Invalid(f"cursor {cursor[:40]!r} is not one of ours", hint="pass the `cursor` of the last page")
    return int(cursor)


TOOLS = (completion_cache_report,)
