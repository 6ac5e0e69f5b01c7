"""Whether a model that failed of late is asked at all: one circuit for each provider and model family.

    closed  --5 counted failures in a row within 60 s-->  open
    open    --30 s later, the first turn that asks-->     half open: that turn's call is the probe
    half open  --the probe is answered-->  closed         --it fails-->  open again

The state is a row of `breaker`, so it survives a restart. A circuit without a row is closed and has no failure to
remember: that is the usual case, and it costs no statement (see `Breakers`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Final, Literal

from ksi_mcp.db import Row, Tx
from ksi_mcp.events.journal import Recorder
from ksi_mcp.permissions import Context, system_context

COUNTED: Final[frozenset[str]] = frozenset({"overload", "server", "transport", "timeout"})
"""The failures that speak of the provider's health. A refusal (rate, request, auth, budget) shows that it is up."""
FAILURES: Final = 5
WINDOW_MS: Final = 60_000
OPEN_MS: Final = 30_000
PROBE_MS: Final = 600_000
"""No call lasts longer, so a probe that old is nobody's any more."""
ASK_AGAIN_MS: Final = 2_000
"""While a probe is under way, whoever waits for it asks again after this long at least."""

_FAMILY_CHARS: Final = 80
_SEPARATOR = re.compile(r"[^\w]+|_+")
_WORD = re.compile(r"([^\W\d]+)\d*")
_NO_FAMILY: Final = frozenset({"v", "latest", "preview", "exp", "experimental"})

State = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """How one model family of a provider stands. Times are milliseconds since the epoch, by the database's clock."""

    provider: str
    family: str
    state: State = "closed"
    failures: tuple[int, ...] = ()
    opened_at_ms: int | None = None
    probe_turn: str | None = None
    probe_at_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """The call may leave; with `probe` it is the one that finds out, and has to be written down as that."""

    probe: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Not before `until_ms`; then it is worth asking again."""

    until_ms: int


def family_of(model: str) -> str:
    """The models that share a fate: the name without versions, sizes and dates; never empty.

    `claude-haiku-5-5` is `claude-haiku`, `gpt-6-mini-2026` is `gpt-mini`, `llama3.1:8b` is `llama`.
    """
    name = model.casefold().strip()
    words = [found[1] for part in _SEPARATOR.split(name) if (found := _WORD.fullmatch(part))]
    family = "-".join(word for word in words if word not in _NO_FAMILY)
    return (family or name or "unknown")[:_FAMILY_CHARS]


def may_call(circuit: Circuit, turn_id: str, now_ms: int) -> Go | Wait:
    """Whether that turn may call now. A time that lies ahead (the clock was set back) holds nobody up."""
    if circuit.state == "closed":
        return Go()
    if circuit.state == "open":
        until_ms = (circuit.opened_at_ms or 0) + OPEN_MS
        return Wait(until_ms=until_ms) if until_ms - OPEN_MS <= now_ms < until_ms else Go(probe=True)
    if circuit.probe_turn is None or circuit.probe_turn == turn_id:
        return Go(probe=True)
    age_ms = now_ms - (circuit.probe_at_ms or 0)
    if not 0 <= age_ms < PROBE_MS:
        return Go(probe=True)
    # The longer the probe takes, the less often others ask: few questions, and none comes much too late.
    return Wait(until_ms=now_ms + min(max(age_ms, ASK_AGAIN_MS), OPEN_MS))


def probing(circuit: Circuit, turn_id: str, now_ms: int) -> Circuit:
    """The circuit once that turn's call is the probe. The turn that holds it already goes on holding it."""
    return replace(circuit, state="half_open", probe_turn=turn_id, probe_at_ms=now_ms)


def after_failure(circuit: Circuit, kind: str, now_ms: int, *, turn_id: str) -> Circuit:
    """The circuit after a failed call.

    While it is not closed only the probe's word counts: other calls had left before. A probe that failed in a way that
    says nothing of the provider's health is free for the next.
    """
    if circuit.state != "closed":
        if circuit.state == "open" or circuit.probe_turn != turn_id:
            return circuit
        if kind not in COUNTED:
            return without_probe(circuit)
        return _opened(circuit, (*circuit.failures, now_ms)[-FAILURES:], now_ms)
    if kind not in COUNTED:
        return circuit
    recent = (*(at_ms for at_ms in circuit.failures if 0 <= now_ms - at_ms < WINDOW_MS), now_ms)
    return _opened(circuit, recent, now_ms) if len(recent) >= FAILURES else replace(circuit, failures=recent)


def after_success(circuit: Circuit, *, turn_id: str) -> Circuit:
    """The circuit after an answer: a clean slate, unless it is open and this was not the probe.

    An answer ends the count, so it takes failures in a row to open a circuit: of many calls a second some always fail.
    """
    if circuit.state != "closed" and (circuit.state == "open" or circuit.probe_turn != turn_id):
        return circuit
    return Circuit(provider=circuit.provider, family=circuit.family)


def without_probe(circuit: Circuit) -> Circuit:
    """The circuit whose probe will never report; the next turn that asks is the probe."""
    return replace(circuit, probe_turn=None, probe_at_ms=None)


def _opened(circuit: Circuit, failures: tuple[int, ...], now_ms: int) -> Circuit:
    return replace(without_probe(circuit), state="open", failures=failures, opened_at_ms=now_ms)


class Breakers:
    """The circuits, read and changed in the transaction of the turn that asks.

    What costs nothing: a circuit of which this process knows that it has no row is closed. That knowledge is sound
    since failures are only ever written by the data folder's one worker, which is the one that asks; it is read from
    the table when first needed, or by `load`, which a process calls when it becomes the worker. It errs towards
    asking the table: a unit that is rolled back may leave a name too many, never one too few.
    """

    def __init__(self, journal: Recorder) -> None:
        self._journal = journal
        self._rows: dict[tuple[str, str], int] | None = None
        """Circuits that may have a row, and the transaction (by its time) in which this process wrote it last."""

    def load(self, tx: Tx) -> None:
        """Read which circuits have a row. Needed whenever another process may have been the worker meanwhile."""
        self._rows = {(circuit.provider, circuit.family): -1 for circuit in self.all(tx)}

    def all(self, tx: Tx) -> list[Circuit]:
        """Every circuit that is not spotless, by provider and family."""
        return [_circuit_of(row) for row in tx.all("completions.breaker_all")]

    def ask(self, tx: Tx, provider: str, model: str, turn_id: str) -> int | None:
        """None if that turn may call now, else when (ms since the epoch) it is worth asking again.

        Of all who ask a half-open circuit one gets None: its call is the probe, and it has to report by `failed`,
        `succeeded` or `forget_probe`.
        """
        circuit = self._find(tx, provider, model)
        if circuit is None:
            return None
        verdict = may_call(circuit, turn_id, tx.now_ms)
        if isinstance(verdict, Wait):
            return verdict.until_ms
        if verdict.probe:
            self._save(tx, probing(circuit, turn_id, tx.now_ms))
        return None

    def failed(  # noqa: PLR0917  one call, as `ask` and `succeeded` name it
        self, tx: Tx, provider: str, model: str, turn_id: str, kind: str, ctx: Context
    ) -> bool:
        """Count a failed call of that turn; whether that opened the circuit, for the first time or again."""
        circuit = self._find(tx, provider, model)
        if circuit is None:
            if kind not in COUNTED:
                return False
            circuit = Circuit(provider=provider, family=family_of(model))
        after = after_failure(circuit, kind, tx.now_ms, turn_id=turn_id)
        if after == circuit:
            return False
        self._save(tx, after)
        if after.state != "open":
            return False
        facts = {"failures": len(after.failures), "kind": kind, "wait_s": OPEN_MS // 1000}
        self._tell(tx, "completion:breaker_opened", circuit, {**facts, "again": circuit.state != "closed"}, ctx)
        return True

    def succeeded(self, tx: Tx, provider: str, model: str, turn_id: str, ctx: Context) -> bool:
        """Take note of an answer; whether that closed an open circuit."""
        circuit = self._find(tx, provider, model)
        if circuit is None or (after := after_success(circuit, turn_id=turn_id)) == circuit:
            return False
        tx.run("completions.breaker_drop", {"provider": after.provider, "family": after.family})
        self._note(tx, after)
        if circuit.state == "closed":
            return False
        open_ms = max(0, tx.now_ms - (circuit.opened_at_ms or tx.now_ms))
        self._tell(tx, "completion:breaker_closed", circuit, {"open_s": round(open_ms / 1000, 3)}, ctx)
        return True

    def forget_probe(self, tx: Tx, turn_id: str) -> None:
        """That turn will not report (cancelled, taken over, its worker lost): what it was to find out, others may."""
        tx.run("completions.breaker_forget", {"turn_id": turn_id})

    def _find(self, tx: Tx, provider: str, model: str) -> Circuit | None:
        if self._rows is None:
            self.load(tx)
        rows = self._rows or {}
        key = (provider, family_of(model)) if rows else None
        if key is None or key not in rows:
            return None
        row = tx.one("completions.breaker_one", {"provider": key[0], "family": key[1]})
        if row is not None:
            return _circuit_of(row)
        # A row that is gone may still come back with the transaction that deleted it; once that is over it may not.
        if rows[key] != tx.now_ms:
            del rows[key]
        return None

    def _save(self, tx: Tx, circuit: Circuit) -> None:
        self._note(tx, circuit)
        values = {
            "provider": circuit.provider,
            "family": circuit.family,
            "state": circuit.state,
            "failures": json.dumps(circuit.failures),
            "opened_at_ms": circuit.opened_at_ms,
            "probe_turn": circuit.probe_turn,
            "probe_at_ms": circuit.probe_at_ms,
        }
        tx.run("completions.breaker_save", values)

    def _note(self, tx: Tx, circuit: Circuit) -> None:
        if self._rows is not None:
            self._rows[circuit.provider, circuit.family] = tx.now_ms

    def _tell(self, tx: Tx, name: str, circuit: Circuit, facts: dict[str, object], ctx: Context) -> None:
        data = {"provider": circuit.provider, "family": circuit.family, **facts}
        self._journal.record(tx, name, data, system_context(ctx))


def _circuit_of(row: Row) -> Circuit:
    return Circuit(
        provider=row["provider"],
        family=row["family"],
        state=row["state"],
        failures=tuple(json.loads(row["failures"])),
        opened_at_ms=row["opened_at_ms"],
        probe_turn=row["probe_turn"],
        probe_at_ms=row["probe_at_ms"],
    )
