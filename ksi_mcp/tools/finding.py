"""The library searched: by what a composition has, or by what is to be done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from ksi_mcp.compositions.finding import Sieve
from ksi_mcp.compositions.select import Choice, Selection
from ksi_mcp.compositions.store import Head
from ksi_mcp.errors import Invalid
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import View, tool

CompositionKind = Literal["orchestration", "ensemble", "agent", "component", "evaluation"]

_MAX_PROBLEMS: Final = 20
_MAX_LIMIT: Final = 100
_LIST_LIMIT: Final = 20
_TASK_LIMIT: Final = 5
_MAX_WORDS: Final = 20
_MAX_TEXT_CHARS: Final = 500


class HeadView(View):
    """A composition in a list. `score` (0 to 1), `reasons` and measured `performance` where a task was given."""

    name: str
    type: str
    version: str
    description: str
    tags: list[str]
    hash: str
    layer: str
    score: float | None = None
    reasons: list[str] | None = None
    performance: dict[str, Any] | None = None


class ExcludedView(View):
    """What would fit, and the requirements that it does not meet."""

    name: str
    score: float
    unmet: list[str]


class DiscoverView(View):
    """Best matches first; `problems` are files that could not be loaded. The rest where a task was given."""

    compositions: list[HeadView]
    total: int
    cursor: str | None = None
    problems: list[str] | None = None
    none_fits: str | None = None
    nearest: list[HeadView] | None = None
    excluded: list[ExcludedView] | None = None
    note: str | None = None


@tool("composition_discover", needs="base", effects="reads", title="Find patterns and profiles", idempotent=True)
async def composition_discover(
    call: Call,
    *,
    task: Annotated[str | None, Field(description="what to do: ranked, or none_fits")] = None,
    type: CompositionKind | None = None,
    tags: list[str] | None = None,
    text: str | None = None,
    capabilities: list[str] | None = None,
    metadata_filter: Annotated[dict[str, Any] | None, Field(description="{'performance.runs': {'>': 5}}")] = None,
    descends_from: str | None = None,
    limit: int | None = None,
    cursor: str | None = None,
) -> DiscoverView:
    """Find a pattern to start (type orchestration) or a profile to spawn (agent). Then composition_get."""
    limit = (_TASK_LIMIT if task is not None else _LIST_LIMIT) if limit is None else limit
    _check_sizes(tags or (), capabilities or (), text or "", limit)
    sieve = Sieve(capabilities=tuple(capabilities or ()), descends_from=descends_from, metadata=metadata_filter)
    if task is not None:
        if text is not None or cursor is not None:
            raise Invalid("task goes without text and cursor", hint="a task is ranked whole; raise limit to see more")
        required: dict[str, Any] = {
            "tags": tags,
            "capabilities": capabilities,
            "descends_from": descends_from,
            "metadata": metadata_filter,
        }
        given = {key: value for key, value in required.items() if value}
        return _chosen(await call.svc.library.select(task, given, type=type, limit=limit))
    page = await call.svc.library.discover(
        type=type, tags=tags or (), text=text, sieve=sieve, limit=limit, cursor=cursor
    )
    found = call.svc.library.problems if cursor is None else ()
    problems = [f"{problem.layer}/{problem.path}: {problem.message}" for problem in found]
    return DiscoverView(
        compositions=[_head(head) for head in page.items],
        total=page.total,
        cursor=page.cursor,
        problems=problems[:_MAX_PROBLEMS] or None,
    )


@tool("composition_select", needs="base", effects="reads", title="Choose a pattern for a task", idempotent=True)
async def composition_select(
    call: Call,
    *,
    task: Annotated[str, Field(description="what is to be done, in your own words")],
    requirements: Annotated[
        dict[str, Any] | None,
        Field(
            description="all must be met: tags, capabilities, without_capabilities, variables (those you can give), "
            "descends_from, metadata (a filter), layer, max_usd, max_turns (of its budget), min_agents, max_agents, "
            "min_runs, min_success_rate, min_score (measured here)"
        ),
    ] = None,
    type: Annotated[CompositionKind | None, Field(description="orchestration and ensemble unless given")] = None,
    limit: Annotated[int, Field(ge=1, le=50)] = 5,
) -> DiscoverView:
    """Rank the compositions that fit a task, each with its score (0 to 1) and the reasons, or say that none fits.

    Below 0.5 nothing is offered: none_fits says why, nearest what came closest. Measured performance decides among
    those that fit about as well.
    """
    return _chosen(await call.svc.library.select(task, requirements, type=type, limit=limit))


def _check_sizes(tags: Sequence[str], capabilities: Sequence[str], text: str, limit: int) -> None:
    """The bounds of composition_discover. Not in its schema: every client reads that, whether it needs it or not."""
    for name, words in (("tags", tags), ("capabilities", capabilities)):
        if len(words) > _MAX_WORDS:
            raise Invalid(f"composition_discover: {len(words)} {name}", hint=f"at most {_MAX_WORDS}")
    if len(text) > _MAX_TEXT_CHARS:
        raise Invalid(
            f"composition_discover: text of {len(text):,} characters",
            hint=f"at most {_MAX_TEXT_CHARS}, words in name, description or tags; what is to be done goes into task",
        )
    if not 1 <= limit <= _MAX_LIMIT:
        raise Invalid(f"composition_discover: limit {limit}", hint=f"1 to {_MAX_LIMIT}")


def _chosen(selection: Selection) -> DiscoverView:
    return DiscoverView(
        compositions=[_choice(choice) for choice in selection.choices],
        total=selection.total,
        none_fits=selection.none_fits,
        nearest=[_choice(choice) for choice in selection.nearest] or None,
        excluded=[ExcludedView(name=each.name, score=each.score, unmet=list(each.unmet)) for each in selection.excluded]
        or None,
        note=selection.note,
    )


def _choice(choice: Choice) -> HeadView:
    measured = None if choice.performance is None else choice.performance.as_document()
    return _head(choice.head).model_copy(
        update={"score": choice.score, "reasons": list(choice.reasons), "performance": measured}
    )


def _head(head: Head) -> HeadView:
    return HeadView(
        name=head.name,
        type=head.type,
        version=head.version,
        description=head.description,
        tags=list(head.tags),
        hash=head.hash[:12],
        layer=head.layer,
    )


TOOLS = (composition_discover, composition_select)
