"""The routing table as it is and as it works: a picture, and figures."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.errors import NotFound
from ksi_mcp.routing import safe_mode, stats
from ksi_mcp.routing.graph import Edge, Graph, draw, look, mermaid
from ksi_mcp.routing.stats import RuleFigures
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.selecting import AgentRef
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import at

MAX_TEXT_CHARS = 32_000
"""Of a picture: cut in the middle it would be none."""
MAX_WINDOW_S = 30 * 86_400
Ref = Annotated[str | None, Field(max_length=100)]


# ------------------------------------------------------------------------------------ the picture


class NodeView(View):
    """An agent, an event or a pattern."""

    id: str
    kind: str
    label: str


class EdgeView(View):
    """`rule`: a rule delivers. `hears`: the pattern hears that event. `from`: that agent's only. `part`: of a join."""

    kind: str
    start: str
    end: str
    rule_id: str | None = None
    priority: int | None = None
    condition: str | None = None
    mode: str | None = None
    exclusive: bool | None = None
    rate: dict[str, Any] | None = None
    join: dict[str, Any] | None = None
    disabled: bool | None = None

    @classmethod
    def of(cls, edge: Edge) -> EdgeView:
        """From the record."""
        return cls(kind=edge.kind, start=edge.start, end=edge.end, rule_id=edge.rule_id, **(edge.facts or {}))


class GraphView(View):
    """The table as a flow chart (mermaid), or as nodes and edges. `left_out` rules are not shown."""

    rules: int
    mermaid: str | None = None
    nodes: list[NodeView] | None = None
    edges: list[EdgeView] | None = None
    left_out: int | None = None
    edges_left_out: int | None = None

    def as_text(self) -> str | None:
        """The flow chart."""
        return self.mermaid


@tool("routing_graph", needs="base", effects="reads", title="Draw the routing table", idempotent=True)
async def routing_graph(
    call: Call,
    *,
    format: Literal["mermaid", "json"] = "mermaid",
    orchestration: Ref = None,
    agent: Annotated[AgentRef | None, Field(description="rules that hear, reach or belong to it")] = None,
    limit: Annotated[int, Field(ge=1, le=500, description="rules, those that fire first")] = 100,
) -> GraphView:
    """Draw who sends what to whom: agents, events and patterns, joined by the rules, with events that feed other rules.

    On each edge: rule id, priority, mode of several targets, exclusive, rate, join, condition, disabled.
    """

    def work(tx: Tx) -> GraphView:
        run = None if orchestration is None else call.svc.conductor.find(tx, call.ctx, orchestration).orchestration_id
        agent_id = None if agent is None else reach.find(tx, call.ctx, agent).agent_id
        rules, names, more = look(tx, call.ctx, orchestration_id=run, agent_id=agent_id, limit=limit)
        while True:
            view = _picture(draw(rules, names), format, rules=len(rules), left_out=more)
            if len(rules) <= 1 or len(view.model_dump_json(exclude_none=True)) <= MAX_TEXT_CHARS:
                return view
            kept = rules[: len(rules) * 3 // 4]
            more += len(rules) - len(kept)
            rules = kept

    return await call.read(work)


def _picture(graph: Graph, form: Literal["mermaid", "json"], *, rules: int, left_out: int) -> GraphView:
    as_json = form == "json"
    return GraphView(
        rules=rules,
        mermaid=None if as_json else mermaid(graph, rules_left_out=left_out),
        nodes=[NodeView(id=node.node_id, kind=node.kind, label=node.label) for node in graph.nodes]
        if as_json
        else None,
        edges=[EdgeView.of(edge) for edge in graph.edges] if as_json else None,
        left_out=left_out or None,
        edges_left_out=graph.edges_left_out or None,
    )


# ------------------------------------------------------------------------------------ the figures


class RuleStats(View):
    """What a rule did. `mean_ms`, `slowest_ms`: from event to delivery. `last_used` is known to the minute."""

    rule_id: str | None = None
    matches: int
    deliveries: int
    failures: int | None = None
    limited: int | None = None
    mean_ms: float | None = None
    slowest_ms: int | None = None
    last_used: str | None = None
    gone: bool | None = None

    @classmethod
    def of(cls, figures: RuleFigures) -> RuleStats:
        """From the record; nought is left out but for the first two."""
        return cls(
            rule_id=figures.rule_id,
            matches=figures.matches,
            deliveries=figures.deliveries,
            failures=figures.failures or None,
            limited=figures.limited or None,
            mean_ms=None if figures.mean_ms is None else round(figures.mean_ms, 1),
            slowest_ms=figures.slowest_ms if figures.deliveries else None,
            last_used=None if figures.last_ms is None else at(figures.last_ms),
            gone=None if figures.living else True,
        )


class StatsView(View):
    """Figures of a window. `never_matched`: living rules that never did, as long as figures are kept.

    `routing_paused`: safe mode, nothing is delivered, and so many events wait.
    """

    since: str
    window_s: float
    total: RuleStats
    rules: list[RuleStats]
    left_out: int | None = None
    never_matched: list[str] | None = None
    never_matched_count: int | None = None
    redriven: int | None = None
    no_data: str | None = None
    routing_paused: bool | None = None
    waiting: int | None = None


@tool(
    "routing_stats",
    needs="base",
    effects="reads",
    title="Figures of the routing rules",
    idempotent=True,
    aliases={"window": "window_s"},
)
async def routing_stats(
    call: Call,
    *,
    rule_id: Ref = None,
    window_s: Annotated[float, Field(gt=0, le=MAX_WINDOW_S, description="how far back, in seconds")] = 3_600,
    limit: Annotated[int, Field(ge=1, le=200)] = 50,
) -> StatsView:
    """Return what each rule did: matches, deliveries, failures, events beyond its rate, times; the busiest first."""

    def work(tx: Tx) -> StatsView:
        found = stats.measure(tx, call.ctx, rule_id=rule_id, window_ms=round(window_s * 1000), limit=limit)
        if rule_id is not None and not found.unmatched and found.newest_ms is None:
            raise NotFound(f"there is no rule {rule_id[:80]!r}, and no figures of it", hint="routing_query_rules")
        no_data = None
        if found.total.last_ms is None:
            last = "never, as far as is known" if found.newest_ms is None else f"last at {at(found.newest_ms)}"
            no_data = f"no rule matched anything in this window; {last}"
        paused = safe_mode.is_paused(tx)
        return StatsView(
            since=at(found.since_ms),
            window_s=window_s,
            total=RuleStats.of(found.total),
            rules=[RuleStats.of(figures) for figures in found.rules],
            left_out=found.rules_left_out or None,
            never_matched=list(found.unmatched) or None,
            never_matched_count=found.unmatched_count or None,
            redriven=found.redriven or None,
            no_data=no_data,
            routing_paused=paused or None,
            waiting=safe_mode.waiting(tx) if paused else None,
        )

    return await call.read(work)


TOOLS = (routing_graph, routing_stats)
