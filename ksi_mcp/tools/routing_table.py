"""The routing table as a whole: several changes as one, a trial, the way back, and who did what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from ksi_mcp.agents import reach
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid, KsiError
from ksi_mcp.events.model import Event
from ksi_mcp.routing.auditing import ACTION_OF, Action, AuditFilter, page
from ksi_mcp.routing.changing import Change, Removal, Update, in_change
from ksi_mcp.routing.validating import Verdict
from ksi_mcp.routing.versions import RolledBack
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.routing import RuleView, RuleWants, TargetWants, draft_of, published_rule
from ksi_mcp.tools.tool import View, tool
from ksi_mcp.tools.views import at, first_of

MAX_CHANGES = 200
MAX_LISTED = 200
"""So many rules of each kind are named by a rollback."""
MAX_SHOWN_CHARS = 32_000
"""Of the rules that a call changed: cut in the middle the answer would be none."""
_OPS = ("add", "modify", "delete")


class AppliedView(View):
    """One new version of the table: the rules that were added or changed, and the ids of those that are gone.

    `left_out` rules were changed as well, and are too much to be shown.
    """

    version: int
    rules: list[RuleView]
    left_out: int | None = None
    deleted: list[str] | None = None
    dry_run: bool | None = None


class Problem(View):
    """One thing that is wrong with a rule, and what to do about it."""

    code: str
    error: str
    hint: str | None = None


class VerdictView(View):
    """Whether a rule would be taken as the table is now."""

    valid: bool
    errors: list[Problem]
    warnings: list[str]
    conflicts: list[str]
    cycle: list[str] | None = None

    @classmethod
    def of(cls, verdict: Verdict) -> VerdictView:
        """From the record."""
        return cls(
            valid=not verdict.errors,
            errors=[_problem(failure) for failure in verdict.errors],
            warnings=list(verdict.warnings),
            conflicts=list(verdict.conflicts),
            cycle=list(verdict.cycle) or None,
        )


class SkippedView(View):
    """A rule that does not come back, and why."""

    rule_id: str
    reason: str


class RolledBackView(View):
    """What a rollback changed. Of each kind so many are named as there is room for; the numbers are whole."""

    version: int
    to_version: int
    changes: int
    added: list[str]
    modified: list[str]
    deleted: list[str]
    skipped: list[SkippedView]
    counts: dict[str, int] | None = None
    dry_run: bool | None = None

    @classmethod
    def of(cls, done: RolledBack, *, dry_run: bool) -> RolledBackView:
        """From the record."""
        kinds = {"added": done.added, "modified": done.modified, "deleted": done.deleted, "skipped": done.skipped}
        return cls(
            version=done.version,
            to_version=done.to_version,
            changes=len(done.added) + len(done.modified) + len(done.deleted),
            added=list(done.added[:MAX_LISTED]),
            modified=list(done.modified[:MAX_LISTED]),
            deleted=list(done.deleted[:MAX_LISTED]),
            skipped=[SkippedView(rule_id=each.rule_id, reason=each.reason) for each in done.skipped[:MAX_LISTED]],
            counts={kind: len(ids) for kind, ids in kinds.items() if len(ids) > MAX_LISTED} or None,
            dry_run=dry_run or None,
        )


class AuditEntry(View):
    """One change of the table, or one refusal."""

    event_id: int
    at: str
    actor: str
    action: Action
    rule_id: str | None = None
    version: int | None = None
    reason: str | None = None
    rule: dict[str, Any] | None = None
    was: dict[str, Any] | None = None
    details: dict[str, Any] | None = None

    @classmethod
    def of(cls, event: Event) -> AuditEntry:
        """From the record."""
        facts = dict(event.data)
        known = {name: facts.pop(name, None) for name in ("rule_id", "version", "reason", "rule", "was")}
        return cls(
            event_id=event.event_id,
            at=at(event.at_ms),
            actor=event.source,
            action=ACTION_OF[event.name],
            details=facts or None,
            **known,
        )


class AuditView(View):
    """Newest first."""

    entries: list[AuditEntry]
    cursor: str | None = None


class _Undo(Exception):
    """Ends the transaction of a trial, with what it came to."""

    def __init__(self, view: AppliedView) -> None:
        super().__init__("a trial")
        self.view = view


@tool(
    "routing_apply",
    needs="routing_control",
    effects="writes",
    title="Change several routing rules at once",
    aliases={"rules": "changes"},
)
async def routing_apply(
    call: Call,
    *,
    changes: Annotated[
        list[dict[str, Any]],
        Field(
            description="{op: add, ...as in routing_add_rule} | {op: modify, rule_id, updates} | {op: delete, rule_id}",
            min_length=1,
            max_length=MAX_CHANGES,
        ),
    ],
    reason: str | None = None,
    dry_run: bool = False,
) -> AppliedView:
    """Change several rules as one: all of it happens, in one version of the table, or nothing.

    Later changes see earlier ones; circles and conflicts are looked for at the end, so that two rules may change
    places. An error says which change it is about. dry_run says what would come of it.
    """
    wanted = [change_of(place, given, reason) for place, given in enumerate(changes)]
    await call.svc.router.refresh()

    def work(tx: Tx) -> AppliedView:
        done = call.svc.router.apply(tx, call.ctx, wanted)
        shown, left_out = first_of(map(RuleView.of, done.rules), MAX_SHOWN_CHARS)
        view = AppliedView(
            version=done.version,
            rules=shown,
            left_out=left_out or None,
            deleted=list(done.deleted) or None,
            dry_run=dry_run or None,
        )
        if dry_run:
            raise _Undo(view)
        return view

    try:
        return await call.commit(work)
    except _Undo as undone:
        return undone.view


def change_of(place: int, given: dict[str, Any], reason: str | None) -> Change:
    """Read one of several changes.

    Raises:
        KsiError: it cannot be taken; the message begins with its place.
    """
    fields = published_rule(given)
    op = fields.pop("op", None)
    with in_change(place, str(op)[:20] if op in _OPS else "?"):
        if op not in _OPS:
            raise Invalid(f"op is {op!r:.60}", hint=f"one of {', '.join(_OPS)}")
        why = fields.pop("reason", reason)
        if why is not None and not isinstance(why, str):
            raise Invalid(f"reason is {why!r:.60}", hint="a text")
        if op == "add":
            return _draft(fields, why)
        rule_id = fields.pop("rule_id", None)
        if not isinstance(rule_id, str):
            raise Invalid(f"rule_id is {rule_id!r:.60}", hint="the id of the rule; routing_query_rules lists them")
        if op == "modify":
            updates = fields.pop("updates", {})
            if not isinstance(updates, dict):
                raise Invalid(f"updates is {updates!r:.60}", hint="an object of fields of routing_add_rule")
            return Update(rule_id=rule_id, updates={**fields, **published_rule(updates)}, reason=why)
        if fields:
            raise Invalid(f"unknown fields {', '.join(map(repr, fields))[:200]}", hint="there are rule_id, reason")
        return Removal(rule_id=rule_id, reason=why)


def _draft(fields: dict[str, Any], reason: str | None) -> Change:
    try:
        wants = RuleWants.model_validate(fields)
    except ValidationError as failure:
        wrong = "; ".join(
            f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in failure.errors(include_url=False)[:5]
        )
        raise Invalid(wrong[:500], hint="fields as in routing_add_rule") from None
    if reason is None:
        return draft_of(wants)
    return draft_of(wants.model_copy(update={"metadata": {**(wants.metadata or {}), "reason": reason[:500]}}))


@tool(
    "routing_validate_rule",
    needs="base",
    effects="reads",
    title="Ask whether a routing rule would be taken",
    idempotent=True,
    aliases={"ttl": "ttl_s", "pattern": "source_pattern"},
    convert=published_rule,
)
async def routing_validate_rule(
    call: Call,
    *,
    source_pattern: str,
    target: TargetWants,
    condition: str | None = None,
    mapping: dict[str, Any] | str | None = None,
    priority: int = 100,
    ttl_s: float | None = None,
    source_agent: str | None = None,
    scope: str | None = None,
    enabled: bool = True,
    rule_id: str | None = None,
    metadata: dict[str, Any] | None = None,
    exclusive: bool = False,
    rate: dict[str, Any] | None = None,
    join: dict[str, Any] | None = None,
    modifiable: bool = True,
) -> VerdictView:
    """Would routing_add_rule take this rule from you, as the table is now? Says all that is wrong, and warns.

    conflicts names the rules in its way, cycle the circle of events it would close. Nothing is written. For a change
    of a rule that is there: routing_apply with dry_run.
    """
    fields: dict[str, Any] = {
        "source_pattern": source_pattern,
        "target": target,
        "condition": condition,
        "mapping": mapping,
        "priority": priority,
        "ttl_s": ttl_s,
        "source_agent": source_agent,
        "scope": scope,
        "enabled": enabled,
        "rule_id": rule_id,
        "metadata": metadata,
        "exclusive": exclusive,
        "rate": rate,
        "join": join,
        "modifiable": modifiable,
    }
    try:
        # Its own numbers are checked by the draft, so that this is an answer and not a failure.
        draft = draft_of(RuleWants.model_construct(**fields))
    except KsiError as failure:
        return VerdictView(valid=False, errors=[_problem(failure)], warnings=[], conflicts=[])
    await call.svc.router.refresh()
    return await call.read(lambda tx: VerdictView.of(call.svc.router.validate(tx, call.ctx, draft)))


def _problem(failure: KsiError) -> Problem:
    return Problem(code=failure.code, error=failure.message, hint=failure.hint)


@tool(
    "routing_rollback",
    needs="operator",
    effects="destroys",
    title="Bring an earlier version of the routing table back",
    aliases={"version": "to_version"},
)
async def routing_rollback(
    call: Call,
    *,
    to_version: Annotated[int, Field(description="as in routing_audit; 0 is the empty table")],
    reason: Annotated[str, Field(min_length=1)],
    dry_run: bool = False,
) -> RolledBackView:
    """Make the routing table what it was at a version, in one transaction and one new version.

    Rules come back exactly as they were; what was added later goes. A rule whose agent or run has ended since, or
    whose time is over, does not come back (skipped). dry_run only says what would change.
    """

    def work(tx: Tx) -> RolledBackView:
        done = call.svc.router.roll_back(tx, call.ctx, to_version, reason=reason, dry_run=dry_run)
        return RolledBackView.of(done, dry_run=dry_run)

    await call.svc.router.refresh()
    return await (call.read(work) if dry_run else call.commit(work))


def flat_filter(given: dict[str, Any]) -> dict[str, Any]:
    """The keys of `filter` as parameters of their own."""
    wanted = given.get("filter")
    if not isinstance(wanted, dict):
        return given
    return {**wanted, **{name: value for name, value in given.items() if name != "filter"}}


@tool(
    "routing_audit",
    needs="base",
    effects="reads",
    title="See who changed the routing table",
    idempotent=True,
    convert=flat_filter,
)
async def routing_audit(
    call: Call,
    *,
    rule_id: str | None = None,
    actor: Annotated[str | None, Field(description="operator, system, or an agent")] = None,
    action: Literal["add", "modify", "delete", "expire", "rollback", "damp", "subscribe", "refuse"] | None = None,
    orchestration: str | None = None,
    since: Annotated[int | None, Field(description="after this event id", ge=0)] = None,
    limit: Annotated[int, Field(ge=1, le=200)] = 50,
    cursor: str | None = None,
) -> AuditView:
    """Who changed which rule, when and why, and who was refused it; newest first. An agent sees what concerns it."""

    def work(tx: Tx) -> AuditView:
        wanted = AuditFilter(
            rule_id=rule_id,
            actor=_actor(tx, call, actor),
            action=action,
            orchestration_id=None
            if orchestration is None
            else call.svc.conductor.find(tx, call.ctx, orchestration).orchestration_id,
            after_id=since or 0,
            visible_to=reach.visible_scopes(tx, call.ctx),
        )
        found = page(tx, wanted, limit=limit, cursor=cursor)
        return AuditView(entries=[AuditEntry.of(event) for event in found.events], cursor=found.cursor)

    return await call.read(work)


def _actor(tx: Tx, call: Call, actor: str | None) -> str | None:
    if actor in (None, "operator", "system"):
        return actor
    return f"agent:{reach.find(tx, call.ctx, actor.removeprefix('agent:')).agent_id}"


TOOLS = (routing_apply, routing_validate_rule, routing_rollback, routing_audit)
