"""What a half-written argument may mean: names and ids of what the caller can see."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.compositions import lineage
from ksi_mcp.db import Row, Tx
from ksi_mcp.routing.router import MAX_PAGE
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import View, tool

MAX_VALUE_CHARS: Final = 200
MAX_SUGGESTED: Final = 100
_EVENTS: Final = 10_000
"""The newest, in which roots are looked for."""
_RULE_PAGES: Final = 10

Kind = Literal["agent", "run", "rule", "pattern", "composition", "root"]


class SuggestView(View):
    """Those that begin with what was written, then those that hold it; `more` than these `total` were not looked at."""

    values: list[str]
    total: int
    more: bool | None = None


@tool("name_suggest", needs="base", effects="reads", title="Complete a name", idempotent=True)
async def name_suggest(
    call: Call,
    *,
    kind: Annotated[Kind, Field(description="root: the first cause of a chain of events")],
    value: Annotated[str, Field(max_length=MAX_VALUE_CHARS, description="what was written so far")] = "",
    within: Annotated[
        str | None, Field(max_length=MAX_VALUE_CHARS, description="agents of this run; descendants of this composition")
    ] = None,
    limit: Annotated[int, Field(ge=1, le=MAX_SUGGESTED)] = 20,
) -> SuggestView:
    """Return the names and ids that a half-written argument may mean: first those that begin so, the newest first."""
    text = value.casefold()
    if "\0" in text:
        return SuggestView(values=[], total=0)
    if kind in ("pattern", "composition"):
        await call.svc.library.fresh()

    def work(tx: Tx) -> SuggestView:
        match kind:
            case "agent":
                return _cut(_agents(tx, call, text, within, limit), limit)
            case "run":
                seen = _listed(reach.visible_runs(tx, call.ctx))
                return _cut(tx.all("tools.suggest_runs", {"text": text, "visible": seen, "limit": limit}), limit)
            case "root":
                seen = _listed(reach.visible_scopes(tx, call.ctx))
                values = {"text": text, "visible": seen, "events": _EVENTS, "limit": limit}
                return _cut(tx.all("tools.suggest_roots", values), limit)
            case "rule":
                return _rules(tx, call, text, limit)
            case _:
                return _ranked(_compositions(tx, call, kind, within), text, limit)

    return await call.read(work)


def _agents(tx: Tx, call: Call, text: str, within: str | None, limit: int) -> Sequence[Row]:
    seen = _listed(reach.visible(tx, call.ctx))
    return tx.all("tools.suggest_agents", {"text": text, "visible": seen, "run": within, "limit": limit})


def _rules(tx: Tx, call: Call, text: str, limit: int) -> SuggestView:
    found: list[tuple[str, str]] = []
    cursor = None
    for _ in range(_RULE_PAGES):
        page = call.svc.router.query_rules(tx, call.ctx, limit=MAX_PAGE, cursor=cursor)
        found += [(rule.rule_id, rule.source_pattern) for rule in page.rules]
        cursor = page.cursor
        if cursor is None:
            break
    # Nobody knows a rule's id by heart: what it listens to finds it as well.
    view = _ranked(((rule_id, (rule_id, pattern)) for rule_id, pattern in found), text, limit)
    return view.model_copy(update={"more": True}) if cursor is not None else view


def _compositions(tx: Tx, call: Call, kind: Kind, within: str | None) -> list[tuple[str, tuple[str]]]:
    catalog = call.svc.library.catalog
    heads = [head for head in catalog.heads(tx) if kind == "composition" or head.type in ("orchestration", "ensemble")]
    if within is not None:
        below = {each.name for each in lineage.descendants(catalog.documents(tx), within.partition("@")[0])}
        heads = [head for head in heads if head.name in below]
    return [(name, (name,)) for name in sorted(head.name for head in heads)]


def _ranked(items: Iterable[tuple[str, tuple[str, ...]]], text: str, limit: int) -> SuggestView:
    """The values of which one of the words holds `text`: those that begin so themselves before the others."""
    fits = [(value, words) for value, words in items if any(text in word.casefold() for word in words)]
    first = [value for value, _ in fits if value.casefold().startswith(text)]
    rest = [value for value, _ in fits if not value.casefold().startswith(text)]
    return SuggestView(values=[*first, *rest][:limit], total=len(fits))


def _cut(rows: Sequence[Row], limit: int) -> SuggestView:
    return SuggestView(values=[row["value"] for row in rows[:limit]], total=rows[0]["total"] if rows else 0)


def _listed(seen: frozenset[str] | None) -> str | None:
    return None if seen is None else json.dumps(sorted(seen))


TOOLS = (name_suggest,)
