"""Tokens for others than the operator: whoever may only look, and whoever is to act as one agent.

The text of a token is shown once, to whoever has it made; stored is its SHA-256, from which nobody can make it again
(it has 256 random bits, so there is nothing to guess). What a token allows is decided anew at every request.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final, Literal

from ksi_mcp.agents import reach
from ksi_mcp.db import Row, Tx
from ksi_mcp.errors import Conflict, Invalid, NotFound, Refused
from ksi_mcp.events.journal import Journal
from ksi_mcp.ids import AgentId, new_id
from ksi_mcp.permissions import READER, Actor, Context, agent_actor

Kind = Literal["reader", "agent"]

PREFIX: Final = "ksi_"
TOKEN_BYTES: Final = 32
MAX_TOKENS: Final = 1_000
"""Tokens that let somebody in at one time."""
DEFAULT_DAYS: Final = 30.0
MAX_DAYS: Final = 3_650.0
MAX_LABEL_CHARS: Final = 100
_MOST_CHARS: Final = 200
_DAY_MS: Final = 86_400_000
_LISTED: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """A token as it is stored, without its text."""

    token_id: str
    kind: Kind
    agent_id: AgentId | None
    label: str | None
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None

    def lets_in(self, now_ms: int) -> bool:
        """Whether it still does."""
        return self.revoked_at_ms is None and (self.expires_at_ms is None or now_ms < self.expires_at_ms)

    @property
    def actor(self) -> Actor:
        """Who comes with it."""
        return READER if self.agent_id is None else agent_actor(self.agent_id)


class AccessTokens:
    """Makes, checks and revokes tokens. Only the operator may, on the command line: a token is no text for a model."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def make(
        self, ctx: Context, *, agent: str | None, label: str | None = None, days: float | None = DEFAULT_DAYS
    ) -> tuple[str, AccessToken]:
        """Make a token that acts as `agent` (its id or name), or without one may only look. Returns its text, too.

        `days`: for how long it lets somebody in; None: until it is revoked.

        Raises:
            Refused: the caller is not the operator, or the agent has ended.
            NotFound: there is no such agent.
            Invalid: the label is too long, or the days are out of range.
            Conflict: there are too many tokens.
        """
        _only_operator(ctx)
        if label is not None and (len(label) > MAX_LABEL_CHARS or not label.isprintable()):
            raise Invalid(f"the label {label[:40]!r} is no label", hint=f"{MAX_LABEL_CHARS} printable characters")
        if days is not None and not 0 < days <= MAX_DAYS:
            raise Invalid(f"days is {days!r:.40}", hint=f"more than 0 and at most {MAX_DAYS:,.0f}, or none at all")
        text = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)

        def unit(tx: Tx) -> AccessToken:
            found = None if agent is None else reach.find(tx, ctx, agent)
            if found is not None and found.life != "active":
                raise Refused(
                    f"agent {found.name!r} has ended; nobody can act as it", hint="agent_list shows the living"
                )
            counted = tx.one("access.count", {"now_ms": tx.now_ms})
            if counted is not None and counted["tokens"] >= MAX_TOKENS:
                raise Conflict(
                    f"there are {MAX_TOKENS:,} tokens", hint="`ksi-mcp tokens revoke` those that nobody needs"
                )
            made = AccessToken(
                token_id=new_id("k"),
                kind="reader" if found is None else "agent",
                agent_id=None if found is None else found.agent_id,
                label=label,
                created_at_ms=tx.now_ms,
                expires_at_ms=None if days is None else tx.now_ms + round(days * _DAY_MS),
                revoked_at_ms=None,
            )
            tx.run(
                "access.insert",
                {
                    "token_id": made.token_id,
                    "digest": _digest(text),
                    "kind": made.kind,
                    "agent_id": made.agent_id,
                    "label": label,
                    "created_at_ms": made.created_at_ms,
                    "expires_at_ms": made.expires_at_ms,
                },
            )
            facts = {"token": made.token_id, "kind": made.kind, "agent": made.agent_id, "label": label, "days": days}
            self._journal.record(tx, "system:token_made", facts, ctx, routable=False)
            return made

        return text, await self._journal.commit(unit)

    async def who(self, text: str) -> Actor | None:
        """Who comes with this token; None: nobody does, or not any more."""
        if not text.startswith(PREFIX) or len(text) > _MOST_CHARS:
            return None
        digest = _digest(text)

        def look(tx: Tx) -> Actor | None:
            row = tx.one("access.by_digest", {"digest": digest})
            found = None if row is None else _token(row)
            return found.actor if found is not None and found.lets_in(tx.now_ms) else None

        return await self._journal.read(look)

    async def list(self, *, ended: bool = False) -> list[AccessToken]:
        """The tokens that let somebody in, newest first; with `ended` also the others."""

        def look(tx: Tx) -> list[AccessToken]:
            values = {"ended": int(ended), "now_ms": tx.now_ms, "limit": _LISTED}
            return [_token(row) for row in tx.all("access.page", values)]

        return await self._journal.read(look)

    async def revoke(self, ctx: Context, token_id: str) -> AccessToken:
        """Let nobody in with this token any more; what is open with it ends soon.

        Raises:
            NotFound: there is none of that id.
            Refused: the caller is not the operator.
        """
        _only_operator(ctx)

        def unit(tx: Tx) -> AccessToken:
            row = tx.one("access.one", {"token_id": token_id})
            if row is None:
                raise NotFound(f"unknown token {token_id[:40]!r}", hint="`ksi-mcp tokens list` shows their ids")
            if tx.run("access.revoke", {"token_id": token_id, "now_ms": tx.now_ms}):
                self._journal.record(tx, "system:token_revoked", {"token": token_id}, ctx, routable=False)
            return _token(tx.one("access.one", {"token_id": token_id}) or row)

        return await self._journal.commit(unit)


def _only_operator(ctx: Context) -> None:
    if ctx.actor.kind != "operator":
        raise Refused("only the operator makes and revokes tokens", hint="`ksi-mcp tokens` on the server's machine")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _token(row: Row) -> AccessToken:
    return AccessToken(
        token_id=row["token_id"],
        kind=row["kind"],
        agent_id=row["agent_id"],
        label=row["label"],
        created_at_ms=row["created_at_ms"],
        expires_at_ms=row["expires_at_ms"],
        revoked_at_ms=row["revoked_at_ms"],
    )
