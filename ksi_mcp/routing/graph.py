"""The table as a picture: what leads where, and which rule hears what another one makes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.permissions import Context
from ksi_mcp.routing.index import RuleTable
from ksi_mcp.routing.rules import Rule, compile_rule
from ksi_mcp.routing.stats import visible_rules
from ksi_mcp.routing.store import rule_of
from ksi_mcp.routing.targets import AGENT, Target

MAX_CONDITION_CHARS: Final = 40
"""Of a condition beside an edge."""
MAX_LABEL_CHARS: Final = 120
MAX_EDGES: Final = 2_000

NodeKind = Literal["agent", "event", "pattern"]
EdgeKind = Literal["rule", "hears", "from", "part"]
_PLAIN: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 _:.,/=-")
_SHAPES: Final[Mapping[NodeKind, tuple[str, str]]] = {
    "agent": ("([", "])"),
    "event": ("[", "]"),
    "pattern": ("{{", "}}"),
}
_ARROWS: Final[Mapping[EdgeKind, str]] = {"rule": "-->", "hears": "-.->", "from": "-.-", "part": "-.->"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An agent, an event by its name, or a pattern (with whose events it is about)."""

    node_id: str
    kind: NodeKind
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """`rule`: what the rule hears goes there. `hears`: that pattern hears this event. `from`: only that agent's events.

    `part`: the join waits for it. `facts` are those of the rule that matter for a picture.
    """

    kind: EdgeKind
    start: str
    end: str
    rule_id: str | None = None
    facts: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Nodes and edges in an order that depends on the rules alone. `edges_left_out`: there were too many."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    edges_left_out: int = 0


class _Drawing:
    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._nodes: dict[tuple[str, ...], Node] = {}
        self._edges: dict[tuple[str, str, str], Edge] = {}
        self._left_out = 0

    def node(self, kind: NodeKind, label: str, *key: str) -> str:
        place = (kind, label, *key)
        if place not in self._nodes:
            self._nodes[place] = Node(node_id=f"n{len(self._nodes)}", kind=kind, label=label)
        return self._nodes[place].node_id

    def agent(self, agent_id: str) -> str:
        name = self._names.get(agent_id)
        return self.node("agent", agent_id if name is None else f"{name} {agent_id}")

    def place(self, target: Target) -> str:
        return self.agent(target.name) if target.kind == "agent" else self.node("event", target.name)

    def source(self, rule: Rule) -> str:
        """What a rule hears; the same for all rules that hear the same."""
        literal = "*" not in rule.source_pattern
        if rule.source_agent is None:
            return self.node("event" if literal else "pattern", rule.source_pattern)
        by_id = rule.source_agent in self._names or rule.source_agent.startswith("a_")
        shown = self._names.get(rule.source_agent, rule.source_agent)
        heard = self.node("pattern", f"{rule.source_pattern} from {shown}", rule.source_agent)
        if by_id:
            self.edge(Edge(kind="from", start=self.agent(rule.source_agent), end=heard))
        return heard

    def edge(self, edge: Edge) -> None:
        key = (edge.kind, edge.start, f"{edge.end} {edge.rule_id or ''}")
        if key in self._edges:
            return
        if len(self._edges) >= MAX_EDGES:
            self._left_out += 1
            return
        self._edges[key] = edge

    def done(self) -> Graph:
        return Graph(
            nodes=tuple(self._nodes.values()), edges=tuple(self._edges.values()), edges_left_out=self._left_out
        )


def look(
    tx: Tx, ctx: Context, *, orchestration_id: str | None, agent_id: str | None, limit: int
) -> tuple[list[Rule], dict[str, str], int]:
    """The living rules that the actor may see, those that fire first; names of agents it may know; how many more."""
    values = {
        "run": orchestration_id,
        "agent_id": agent_id,
        "mine": visible_rules(tx, ctx),
        "now_ms": tx.now_ms,
        "limit": limit,
    }
    rows = tx.all("routing.picture", values)
    rules = [rule_of(row) for row in rows]
    known = reach.visible(tx, ctx)
    agents = {agent for rule in rules for agent in (*rule.target.agents, *_heard_agents(rule))}
    ids = json.dumps(sorted(agents if known is None else agents & known))
    names = {row["agent_id"]: row["name"] for row in tx.all("routing.names", {"agent_ids": ids})}
    return rules, names, int(rows[0]["total"]) - len(rows) if rows else 0


def _heard_agents(rule: Rule) -> Iterable[str]:
    if rule.source_agent is not None:
        yield rule.source_agent
    for part in rule.join.parts if rule.join is not None else ():
        if part.pattern is None:
            yield part.text.removeprefix(AGENT)


def draw(rules: Sequence[Rule], names: Mapping[str, str]) -> Graph:
    """The picture of these rules; `names` are those of the agents that whoever looks may know by name."""
    drawing = _Drawing(names)
    for rule in rules:
        start, facts = drawing.source(rule), _facts(rule)
        for part in rule.join.parts if rule.join is not None else ():
            kind: NodeKind = "pattern" if "*" in part.text else "event"
            origin = (
                drawing.agent(part.text.removeprefix(AGENT)) if part.pattern is None else drawing.node(kind, part.text)
            )
            if origin != start:
                drawing.edge(Edge(kind="part", start=origin, end=start, rule_id=rule.rule_id))
        for target in rule.target:
            drawing.edge(Edge(kind="rule", start=start, end=drawing.place(target), rule_id=rule.rule_id, facts=facts))
    for name, heard in _heard(rules):
        start, end = drawing.node("event", name), drawing.source(heard)
        if start != end:
            drawing.edge(Edge(kind="hears", start=start, end=end))
    return drawing.done()


def _heard(rules: Sequence[Rule]) -> Iterable[tuple[str, Rule]]:
    """The events that rules make, with those of the rules that hear them."""
    table = RuleTable().with_changes(1, {rule.rule_id: compile_rule(rule) for rule in rules})
    for name in dict.fromkeys(name for rule in rules for name in rule.target.events):
        for compiled in table.candidates(name):
            yield name, compiled.rule


def _facts(rule: Rule) -> dict[str, Any]:
    facts: dict[str, Any] = {"priority": rule.priority}
    if rule.condition is not None:
        facts["condition"] = rule.condition
    if rule.target.mode != "all":
        facts["mode"] = rule.target.mode
    if rule.exclusive:
        facts["exclusive"] = True
    if rule.rate is not None:
        facts["rate"] = rule.rate.shown
    if rule.join is not None:
        facts["join"] = rule.join.shown
    if not rule.enabled:
        facts["disabled"] = True
    return facts


# ------------------------------------------------------------------------------------- as mermaid


def mermaid(graph: Graph, *, rules_left_out: int = 0) -> str:
    """The picture as a flow chart. Whatever names, conditions and metadata hold, it is only ever text in it."""
    lines = ["flowchart LR"]
    for node in graph.nodes:
        before, after = _SHAPES[node.kind]
        lines.append(f'  {node.node_id}{before}"{_text(node.label)}"{after}')
    lines += [_arrow(edge) for edge in graph.edges]
    if rules_left_out or graph.edges_left_out:
        lines.append(f"  %% left out: {rules_left_out} rules, {graph.edges_left_out} edges")
    return "\n".join(lines)


def _arrow(edge: Edge) -> str:
    label = _label(edge)
    arrow = _ARROWS[edge.kind]
    return f"  {edge.start} {arrow}" + (f'|"{_text(label)}"|' if label else "") + f" {edge.end}"


def _label(edge: Edge) -> str:
    if edge.kind != "rule":
        return {"hears": "", "from": "", "part": f"part of {edge.rule_id}"}[edge.kind]
    facts = edge.facts or {}
    words = [f"{edge.rule_id}", f"p{facts['priority']}"]
    words += [str(facts["mode"])] if "mode" in facts else []
    words += [word for word in ("exclusive", "disabled") if facts.get(word)]
    if "rate" in facts:
        words.append(f"{facts['rate']['count']} in {facts['rate']['per_s']:g} s")
    if "join" in facts:
        words.append(f"join of {len(facts['join']['all_of'])}")
    if "condition" in facts:
        shown = facts["condition"][:MAX_CONDITION_CHARS]
        words.append(f"if {shown}" + ("..." if shown != facts["condition"] else ""))
    return ", ".join(words)


def _text(label: str) -> str:
    """A text that ends nothing and begins nothing: what is not plain becomes the number of its character."""
    shown = label if len(label) <= MAX_LABEL_CHARS else label[:MAX_LABEL_CHARS] + "..."
    return "".join(char if char in _PLAIN else f"#{ord(char)};" for char in shown) or " "
