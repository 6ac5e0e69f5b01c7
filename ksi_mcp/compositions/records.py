"""What the library gives back."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ksi_mcp.compositions.files import FileProblem
from ksi_mcp.compositions.model import Composition, Layer
from ksi_mcp.compositions.resolve import Resolved
from ksi_mcp.db.database import Work

T = TypeVar("T")


class Commit(Protocol):
    """Runs a unit of work durably: `Journal.commit`, or a wrapper that adds to the transaction."""

    def __call__(self, work: Work[T], /) -> Awaitable[T]:
        """Run it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshReport:
    """What a look at the folders brought."""

    indexed: int
    removed: int
    total: int
    problems: tuple[FileProblem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompositionRecord:
    """A composition with its document; `resolved` if that was asked for. No file: `layer` is None."""

    composition: Composition
    layer: Layer | None
    resolved: Resolved | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Whether a document could be used, and everything that is wrong with it: each by itself, and in one text."""

    valid: bool
    problem: str | None
    warnings: tuple[str, ...]
    composition: Composition | None
    problems: tuple[str, ...] = ()
