"""A decision is a row, an event and an entry of a file, in that order, and a crash leaves no gap."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp import yamlio
from ksi_mcp.compositions.library import Library
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.decisions.log import DecisionLog
from ksi_mcp.decisions.model import Decision, draft_decision
from ksi_mcp.errors import Invalid, KsiError, Refused
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import EventFilter
from ksi_mcp.permissions import OPERATOR, agent_actor, fresh_context


class _Clock:
    """Each look is a millisecond later, so that the order of decisions is clear."""

    ms = 1_700_000_000_000

    def now_ms(self) -> int:
        self.ms += 1
        return self.ms

    def monotonic_s(self) -> float:
        return self.ms / 1000

    async def sleep(self, seconds: float) -> None:
        self.ms += int(seconds * 1000)


_CTX = fresh_context(OPERATOR)


@pytest.fixture
async def journal() -> AsyncIterator[Journal]:
    clock = _Clock()
    db = await open_sqlite(":memory:", clock)
    yield Journal(db, clock)
    await db.close()


def _log(journal: Journal, root: Path) -> DecisionLog:
    return DecisionLog(journal, Library(journal, builtin=root / "builtin", user=root / "user", project=None))


def _entries(root: Path, pattern: str = "p") -> Any:
    text = (root / "user" / "decisions" / f"{pattern}_decisions.yaml").read_text()
    return yamlio.safe_load(text, what="the file")


async def test_a_decision_is_stored_reported_and_appended(journal: Journal, tmp_path: Path) -> None:
    log = _log(journal, tmp_path)
    first = await log.track(
        _CTX,
        pattern="orchestrations/p.yaml",
        decision="drop b: it lost\n- twice",
        context={"table": {"a": 2, "b": 0}, "odd": "2024-01-01"},
        reasoning="line one\n  at: not the end\n- id: d_fake\n",
        confidence="0.75",
        score=3,
        agent="referee",
    )
    second = await log.track(_CTX, pattern="p", decision="stop")
    assert (first.pattern, first.confidence, first.score, first.agent) == ("p", 0.75, 3.0, "referee")
    assert (second.confidence, second.outcome, second.agent) == (None, "pending", "operator")
    page = await journal.read(lambda tx: log.query(tx, pattern="p"))
    assert page.decisions == (second, first)
    events = await journal.query(EventFilter(names=("decision:tracked",)), limit=10)
    assert [event.data["decision_id"] for event in events.events] == [second.decision_id, first.decision_id]
    entries = _entries(tmp_path)
    assert [entry["id"] for entry in entries] == [first.decision_id, second.decision_id]
    assert entries[0]["context"] == {"table": {"a": 2, "b": 0}, "odd": "2024-01-01"}
    assert entries[0]["reasoning"] == first.reasoning
    assert entries[1].keys() == {"id", "pattern", "decision", "outcome", "agent", "at"}
    assert await log.write_missing() == 0


async def test_an_agent_is_recorded_as_itself_and_cannot_name_another(journal: Journal, tmp_path: Path) -> None:
    log = _log(journal, tmp_path)
    ctx = fresh_context(agent_actor("a_1111111111"))
    own = await log.track(ctx, pattern="p", decision="d")
    named = await log.track(ctx, pattern="p", decision="d", agent="a_1111111111")
    assert (own.agent, named.agent) == ("a_1111111111", "a_1111111111")
    with pytest.raises(Refused, match="cannot track a decision of 'a_2222222222'"):
        await log.track(ctx, pattern="p", decision="d", agent="a_2222222222")
    assert len(_entries(tmp_path)) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"confidence": "high"},
        {"confidence": 1.5},
        {"confidence": -0.1},
        {"confidence": float("nan")},
        {"confidence": True},
        {"confidence": [1]},
        {"score": "inf"},
        {"decision": ""},
        {"decision": "x" * 3000},
        {"decision": None},
        {"decision": "\ud800"},
        {"reasoning": 5},
        {"reasoning": "x" * 30_000},
        {"outcome": " "},
        {"context": {"x": float("inf")}},
        {"context": {"x": "y" * 40_000}},
        {"context": {1, 2}},
        {"pattern": "../../etc/passwd"},
        {"pattern": "/abs"},
        {"pattern": "A b"},
        {"pattern": ""},
    ],
)
async def test_what_cannot_be_stored_is_refused_and_leaves_nothing(
    journal: Journal, tmp_path: Path, fields: dict[str, Any]
) -> None:
    log = _log(journal, tmp_path)
    with pytest.raises(Invalid):
        await log.track(_CTX, **{"pattern": "p", "decision": "d", **fields})
    assert not (tmp_path / "user").exists()
    assert (await journal.read(log.query)).decisions == ()


async def test_queries_filter_and_page_from_the_newest(journal: Journal, tmp_path: Path) -> None:
    log = _log(journal, tmp_path)
    for n in range(5):
        await log.track(
            _CTX, pattern="p" if n % 2 else "q", decision=f"Choose {n}", outcome="success" if n > 2 else "pending"
        )
    seen: list[str] = []
    cursor = None
    while True:
        page = await journal.read(lambda tx, cursor=cursor: log.query(tx, limit=2, cursor=cursor))  # type: ignore[misc]
        seen += [decision.decision for decision in page.decisions]
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == [f"Choose {n}" for n in (4, 3, 2, 1, 0)]
    found = await journal.read(lambda tx: log.query(tx, pattern="q", outcome="success", decision="CHOOSE"))
    assert [decision.decision for decision in found.decisions] == ["Choose 4"]
    for bad in ("x", "1", "-", "99999999999999999999-d"):
        with pytest.raises(KsiError):
            await journal.read(lambda tx, bad=bad: log.query(tx, cursor=bad))  # type: ignore[misc]


async def _tracked_only_in_the_database(journal: Journal, log: DecisionLog, text: str) -> Decision:
    draft = draft_decision(pattern="p", decision=text)
    return await journal.commit(lambda tx: log.track_in(tx, _CTX, draft))


async def test_what_a_crash_kept_from_the_file_is_written_at_the_next_start(journal: Journal, tmp_path: Path) -> None:
    log = _log(journal, tmp_path)
    await log.track(_CTX, pattern="p", decision="one")
    lost = [await _tracked_only_in_the_database(journal, log, text) for text in ("two", "three")]
    assert await log.write_missing() == 2
    assert [entry["decision"] for entry in _entries(tmp_path)] == ["one", "two", "three"]
    await log.append(lost[1])  # the late append of the one that was healed
    assert len(_entries(tmp_path)) == 3
    assert await log.write_missing() == 0


async def test_an_entry_cut_short_anywhere_is_written_again_whole(journal: Journal, tmp_path: Path) -> None:
    log = _log(journal, tmp_path)
    file = tmp_path / "user" / "decisions" / "p_decisions.yaml"
    await log.track(_CTX, pattern="p", decision="one")
    kept = file.stat().st_size
    await log.track(_CTX, pattern="p", decision="two", reasoning="a\nb: 'c", context={"x": [1]})
    whole = file.read_bytes()
    for size in range(kept + 1, len(whole)):
        file.write_bytes(whole[:size])
        assert await log.write_missing() == 1, whole[:size]
        assert file.read_bytes() == whole


async def test_a_cut_entry_does_not_spoil_the_next_append(journal: Journal, tmp_path: Path) -> None:
    log = _log(journal, tmp_path)
    file = tmp_path / "user" / "decisions" / "p_decisions.yaml"
    await log.track(_CTX, pattern="p", decision="one: 'quoted'")
    file.write_bytes(file.read_bytes()[:-40])
    await log.track(_CTX, pattern="p", decision="two")
    assert [entry["decision"] for entry in _entries(tmp_path)] == ["two"]
    assert await log.write_missing() == 1
    assert {entry["decision"] for entry in _entries(tmp_path)} == {"one: 'quoted'", "two"}


async def test_a_deleted_file_is_written_anew_and_entries_by_hand_stay(journal: Journal, tmp_path: Path) -> None:
    log = _log(journal, tmp_path)
    await log.track(_CTX, pattern="p", decision="one")
    file = tmp_path / "user" / "decisions" / "p_decisions.yaml"
    file.unlink()
    assert await log.write_missing() == 1
    file.write_text("- id: by-hand\n  decision: mine")
    await log.track(_CTX, pattern="p", decision="two")
    assert [entry["decision"] for entry in _entries(tmp_path)] == ["mine", "two"]
    assert await log.write_missing() == 1


async def test_a_link_that_leads_out_is_not_written_through(journal: Journal, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "decisions").symlink_to(outside)
    log = _log(journal, tmp_path)
    await log.track(_CTX, pattern="p", decision="one")
    assert list(outside.iterdir()) == []
    assert len((await journal.read(log.query)).decisions) == 1
    assert await log.write_missing() == 0


async def test_decision_files_are_never_taken_for_compositions(journal: Journal, tmp_path: Path) -> None:
    library = Library(journal, builtin=tmp_path / "builtin", user=tmp_path / "user", project=None)
    await DecisionLog(journal, library).track(_CTX, pattern="p", decision="one")
    (tmp_path / "user" / "other_decisions.yaml").write_text("- id: d_1\n")
    report = await library.refresh()
    assert (report.indexed, report.problems) == (0, ())
