"""What the rest of the house sees of a database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Row(Protocol):
    """One row; columns by name."""

    def __getitem__(self, key: str, /) -> Any:
        """The value of a column."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """The values, in the order of the columns."""
        ...

    def keys(self) -> list[str]:
        """The names of the columns."""
        ...


class Tx(Protocol):
    """One unit of work inside a transaction, in the database's own thread.

    Statements are named: `tx.all("events.query", {"limit": 10})` runs the statement `query` of
    `ksi_mcp/events/queries.sql`. A unit is a plain function; it may run twice (after a lost
    transaction), so it has no side effect but through this object.
    """

    now_ms: int

    def run(self, name: str, params: dict[str, Any] | None = None, /) -> int:
        """Run a statement; the number of rows it changed."""
        ...

    def one(self, name: str, params: dict[str, Any] | None = None, /) -> Row | None:
        """The first row, or None."""
        ...

    def all(self, name: str, params: dict[str, Any] | None = None, /) -> Sequence[Row]:
        """Every row."""
        ...

    def announce(self, note: object, /) -> None:
        """Hand `note` to the listeners once this unit is committed; dropped if it is rolled back."""
        ...


Work = Callable[[Tx], T]
Listener = Callable[[Sequence[object]], None]


class Database(Protocol):
    """The store. Nothing awaits inside a transaction, so no model call can ever hold a lock."""

    async def write(self, work: Work[T], /) -> T:
        """Run `work` in a transaction and return once it is durable.

        Units of the same moment share one transaction, each in a savepoint of its own: one that
        raises is undone alone. Cancelling the caller does not undo its unit.

        Raises:
            StoreError: the whole transaction was lost (disk full, locked too long).
        """
        ...

    async def read(self, work: Work[T], /) -> T:
        """Run `work` on a consistent snapshot that holds every write already returned."""
        ...

    def on_commit(self, listener: Listener, /) -> None:
        """Call `listener` on the event loop after each commit with what its units announced, in order."""
        ...

    async def close(self) -> None:
        """Finish what is pending, then close."""
        ...
