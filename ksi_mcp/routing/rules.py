"""What a rule is: checked as it comes in, kept as a record, compiled to be matched. Nothing here touches the store."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from ksi_mcp import templates
from ksi_mcp.errors import Invalid, KsiError, Refused
from ksi_mcp.events.model import check_depth
from ksi_mcp.events.patterns import Glob, Pattern, check_pattern, compile_pattern, shorten
from ksi_mcp.ids import RuleId
from ksi_mcp.routing.conditions import Condition, compile_condition
from ksi_mcp.routing.joins import Join, join_of
from ksi_mcp.routing.mapping import EventMapping, compile_mapping
from ksi_mcp.routing.rates import Rate, rate_of
from ksi_mcp.routing.targets import AGENT, Targets, targets_of

MAX_PRIORITY = 10_000
DEFAULT_PRIORITY = 100
MAX_TTL_S = 30 * 24 * 3600
MAX_METADATA_CHARS = 4_000
MAX_SOURCE_CHARS = 200
GLOBAL: Final = "global"

_RULE_ID = re.compile(r"[a-z0-9_.-]{1,64}\Z")
_SOURCE_GLOB = re.compile(r"[A-Za-z0-9_.*-]+\Z")
_SCOPE = re.compile(r"(global|agent|orchestration|(agent|orchestration):[A-Za-z0-9][A-Za-z0-9_.-]{0,63})\Z")

IsCommand = Callable[[str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleDraft:
    """A rule as somebody wants it. Making one checks everything that can be checked without the store.

    `target` is an event name or `agent:<id or name>`, a list of them, or `{mode: list}` (see `targets.py`); `ttl_s`
    is in seconds, None for ever; `scope` is `global`, `agent[:<id>]` or `orchestration[:<id>]`: whom the rule lives
    and dies with. An `exclusive` rule that delivered keeps those of lower priority from it. `rate` and `join`: see
    `rates.py` and `joins.py`. One that is not `modifiable` is changed only by whoever made it, and the operator.

    Raises:
        Invalid: a field cannot be taken; the message names it.
        Refused: the target is an event that only the server itself emits.
    """

    source_pattern: str
    target: Any
    condition: str | None = None
    mapping: Any = None
    priority: int = DEFAULT_PRIORITY
    ttl_s: float | None = None
    source_agent: str | None = None
    scope: str | None = None
    enabled: bool = True
    metadata: Mapping[str, Any] = field(default_factory=dict)
    rule_id: str | None = None
    exclusive: bool = False
    rate: Any = None
    join: Any = None
    modifiable: bool = True

    def __post_init__(self) -> None:
        check_pattern(self.source_pattern)
        targets_of(self.target)
        if self.condition is not None:
            compile_condition(self.condition)
        compile_mapping(self.mapping)
        if self.source_agent is not None:
            compile_source(self.source_agent)
        if not _is_int(self.priority) or not 0 <= self.priority <= MAX_PRIORITY:
            raise Invalid(f"priority is {self.priority!r:.40}", hint=f"a whole number from 0 to {MAX_PRIORITY:,}")
        if self.ttl_s is not None and not (
            isinstance(self.ttl_s, int | float) and not isinstance(self.ttl_s, bool) and 0 < self.ttl_s <= MAX_TTL_S
        ):
            raise Invalid(f"ttl_s is {self.ttl_s!r:.40}", hint=f"seconds, more than 0 and at most {MAX_TTL_S:,}")
        if self.scope is not None and not (isinstance(self.scope, str) and _SCOPE.match(self.scope)):
            raise Invalid(f"scope {shorten(self.scope)} is none", hint="use global, agent:<id> or orchestration:<id>")
        for name in ("enabled", "exclusive", "modifiable"):
            if not isinstance(value := getattr(self, name), bool):
                raise Invalid(f"{name} is {value!r:.40}", hint="true or false")
        rate_of(self.rate)
        self._check_join()
        if self.rule_id is not None and not (isinstance(self.rule_id, str) and _RULE_ID.match(self.rule_id)):
            raise Invalid(f"rule_id {shorten(self.rule_id)} cannot be used", hint="1 to 64 of a-z, 0-9, '_', '.', '-'")
        encode_metadata(self.metadata)

    def _check_join(self) -> None:
        if (join := join_of(self.join)) is None:
            return
        if self.exclusive:
            raise Invalid("a join cannot be exclusive", hint="it collects, whoever else hears; leave exclusive out")
        heard = compile_pattern(self.source_pattern)
        for part in join.parts:
            if part.pattern is not None and part.pattern.literal and not heard.matches(part.text):
                raise Invalid(
                    f"the join waits for {part.text}, which source_pattern {shorten(self.source_pattern)} never hears",
                    hint="a join hears what its source_pattern hears; choose a wider one",
                )


DRAFT_FIELDS: Final = tuple(f.name for f in fields(RuleDraft))
UPDATE_FIELDS: Final = tuple(name for name in DRAFT_FIELDS if name != "rule_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule of the table. `version` is the table version that last touched it."""

    rule_id: RuleId
    source_pattern: str
    source_agent: str | None
    condition: str | None
    target: Targets
    mapping: Any
    priority: int
    scope: str
    orchestration_id: str | None
    enabled: bool
    created_by: str
    version: int
    created_at_ms: int
    expires_at_ms: int | None
    metadata: Mapping[str, Any]
    exclusive: bool = False
    rate: Rate | None = None
    join: Join | None = None
    modifiable: bool = True
    since: int = 0
    """The table version that gave it these contents; `version` may be later, when it was only read anew."""
    frozen_until_ms: int | None = None
    """Until then it stays as it is: it was changed too often."""

    def expired(self, now_ms: int) -> bool:
        """Whether its time is over; from then on it never matches, swept or not."""
        return self.expires_at_ms is not None and self.expires_at_ms <= now_ms

    def order(self) -> tuple[int, str]:
        """Sorts by priority, the higher first, then by id."""
        return -self.priority, self.rule_id


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFilter:
    """Whose events a rule hears: an id, a name, a glob of them, or a template filled from the event."""

    text: str
    glob: Glob | None

    def hears(self, agent_id: str | None, agent_name: Callable[[], str | None], scope: Mapping[str, Any]) -> bool:
        """Whether the agent behind the event is meant. `agent_name` is asked only when the id does not fit.

        Raises:
            MissingValue: the template needs a value that the event does not have.
        """
        if self.glob is None:
            # What came with an event is compared as it stands: a `*` in it must not hear everybody.
            wanted = templates.render(self.text, scope, max_chars=MAX_SOURCE_CHARS)
            wanted = wanted.removeprefix(AGENT) if isinstance(wanted, str) else None
            return wanted is not None and agent_id is not None and wanted in (agent_id, agent_name())
        if agent_id is None:
            return False
        if self.glob.matches(agent_id):
            return True
        name = agent_name()
        return name is not None and self.glob.matches(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledRule:
    """A rule, ready to be matched. `broken` says why it can never fire: it was stored by a version that read it so."""

    rule: Rule
    pattern: Pattern
    condition: Condition | None
    mapping: EventMapping
    source: SourceFilter | None
    broken: str | None = None


def check_not_command(target: object, is_command: IsCommand) -> None:
    """A rule delivers; it never runs a command.

    Raises:
        Refused: the target is the event name of a tool.
    """
    for name in map(str, targets_of(target)):  # `agent:spawn` reads like an agent, and is a command
        if is_command(name):
            raise Refused(
                f"a rule cannot run the command {shorten(name)}",
                hint="target an event of your own, or an agent that may run it",
            )


def compile_source(text: object) -> SourceFilter:
    """Read a `source_agent`.

    Raises:
        Invalid: it is neither an id, a name, a glob nor a template.
    """
    hint = "an agent's id or name, a glob such as worker_*, or a template such as {{data.agent_id}}"
    if not isinstance(text, str) or not text or len(text) > MAX_SOURCE_CHARS:
        raise Invalid(f"source_agent {shorten(text)} names no agent", hint=hint)
    if "{{" in text:
        compile_mapping({"source_agent": text})
        return SourceFilter(text=text, glob=None)
    name = text.removeprefix(AGENT)
    if not _SOURCE_GLOB.match(name):
        raise Invalid(f"source_agent {shorten(text)} names no agent", hint=hint)
    return SourceFilter(text=name, glob=Glob(name))


def encode_metadata(metadata: object) -> str:
    """Metadata as stored.

    Raises:
        Invalid: it is not a JSON object, or over 4,000 characters.
    """
    if not isinstance(metadata, Mapping):
        raise Invalid("metadata is not an object")
    try:
        text = json.dumps(dict(metadata), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError):
        raise Invalid("metadata is not JSON") from None
    if len(text) > MAX_METADATA_CHARS:
        raise Invalid(f"metadata has {len(text):,} characters", hint=f"at most {MAX_METADATA_CHARS:,}")
    check_depth("metadata", metadata)
    return text


def compile_rule(rule: Rule) -> CompiledRule:
    """The rule, ready to be matched. A stored rule that can no longer be read is kept, broken: it fails closed."""
    pattern = compile_pattern(rule.source_pattern)
    try:
        return CompiledRule(
            rule=rule,
            pattern=pattern,
            condition=None if rule.condition is None else compile_condition(rule.condition),
            mapping=compile_mapping(rule.mapping),
            source=None if rule.source_agent is None else compile_source(rule.source_agent),
        )
    except KsiError as failure:
        nothing = EventMapping(tree=None)
        return CompiledRule(
            rule=rule, pattern=pattern, condition=None, mapping=nothing, source=None, broken=failure.message
        )


def draft_of(rule: Rule) -> RuleDraft:
    """The draft that would make this rule, without its time to live."""
    return RuleDraft(
        source_pattern=rule.source_pattern,
        target=rule.target,
        condition=rule.condition,
        mapping=rule.mapping,
        priority=rule.priority,
        source_agent=rule.source_agent,
        scope=rule.scope,
        enabled=rule.enabled,
        metadata=rule.metadata,
        rule_id=rule.rule_id,
        exclusive=rule.exclusive,
        rate=rule.rate,
        join=rule.join,
        modifiable=rule.modifiable,
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def facts_of(rule: Rule) -> dict[str, Any]:
    """A rule as the audit shows it; what is left at its default is left out."""
    more = {
        "exclusive": rule.exclusive or None,
        "rate": None if rule.rate is None else rule.rate.shown,
        "join": None if rule.join is None else rule.join.shown,
        "modifiable": None if rule.modifiable else False,
    }
    return {
        "source_pattern": rule.source_pattern,
        "source_agent": rule.source_agent,
        "condition": rule.condition,
        "target": rule.target.shown,
        "mapping": rule.mapping,
        "priority": rule.priority,
        "scope": rule.scope,
        "enabled": rule.enabled,
        "created_by": rule.created_by,
        "expires_at_ms": rule.expires_at_ms,
        **{name: value for name, value in more.items() if value is not None},
    }
