"""Safe mode: nothing is delivered, so that a bad table can be mended. Events wait in the outbox; turns run on.

It holds for the whole data folder, until a server or a worker is started without it; one that a server launches,
and a single call, leave it as it is.
"""

from __future__ import annotations

from ksi_mcp.db import Tx
from ksi_mcp.errors import StoreError
from ksi_mcp.events.journal import Recorder, Woken
from ksi_mcp.permissions import SYSTEM, fresh_context


def is_paused(tx: Tx) -> bool:
    """Whether nothing is delivered."""
    row = tx.one("routing.is_paused")
    if row is None:
        raise StoreError("the table of versions is empty", hint="the database file is damaged")
    return bool(row["routing_paused"])


def set_paused(tx: Tx, journal: Recorder, *, paused: bool) -> bool:
    """Begin or end safe mode; whether that changed anything. What waits is delivered after the end of it."""
    if tx.run("routing.set_paused", {"paused": int(paused)}) == 0:
        return False
    name = "routing:paused" if paused else "routing:resumed"
    tx.announce(Woken(kind="events"))
    journal.record(tx, name, {"waiting": waiting(tx)}, fresh_context(SYSTEM), routable=False)
    return True


def waiting(tx: Tx) -> int:
    """How many events wait to be delivered."""
    row = tx.one("routing.outbox_count")
    return 0 if row is None else int(row["waiting"])
