"""Decision logs as others write them: all that can be taken is, nothing of it is lost, and twice is as once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp import yamlio
from ksi_mcp.decisions.importing import read_log

FOREIGN = """
# kept by hand
pattern: tournament
decisions:
  - timestamp: 2025-01-24T10:30:00Z
    pattern: tournament
    decision: skip the second round
    context: {participants: 4, odd: 2025-01-24}
    reasoning: |
      Four are too few.
      So be it.
    confidence: "0.85"
    outcome: null
    phase: 2
  - timestamp: 1737714600
    decision: {action: eliminate, who: b}
    confidence: 90%
    outcome: {winner: a}
    agent_id: judge_1
    context: plain words
    result: kept as well
  - decision: guess
    confidence: high
    outcome: ""
  - decision: sure
    confidence: 7
    at: some day
  - no decision: here
  - just text
  - decision: "   "
  - decision: too sure
    score: .nan
"""


def test_a_log_of_another_system_is_taken_with_all_it_says() -> None:
    log = read_log(FOREIGN.replace("score: .nan", "score: nan"), "tournament", now_ms=5)
    first, second, third, fourth = log.decisions
    assert (first.pattern, first.decision, first.confidence, first.outcome) == (
        "tournament", "skip the second round", 0.85, "pending"
    )  # fmt: skip
    assert first.reasoning == "Four are too few.\nSo be it."
    assert first.context == {"participants": 4, "odd": "2025-01-24", "phase": 2}
    assert (first.at_ms, first.agent) == (1737714600000, "unknown")
    assert (second.at_ms, second.agent, second.confidence) == (1737714600000, "judge_1", 0.9)
    assert yamlio.safe_load(second.decision, what="it") == {"action": "eliminate", "who": "b"}
    assert second.context == {"context": "plain words", "result": "kept as well"}
    assert second.outcome == '{"winner": "a"}'
    assert (third.confidence, third.context, third.outcome, third.at_ms) == (None, {"confidence": "high"}, "pending", 5)
    assert (fourth.confidence, fourth.context) == (None, {"confidence": "7", "at": "some day"})
    assert [problem.partition(":")[0] for problem in log.problems] == ["entry 5", "entry 6", "entry 7", "entry 8"]


def test_the_same_entry_has_the_same_id_whenever_it_is_read() -> None:
    one, other = (read_log(FOREIGN.replace(".nan", "1"), "t", now_ms=now) for now in (1, 2))
    assert [each.decision_id for each in one.decisions] == [each.decision_id for each in other.decisions]
    assert len({each.decision_id for each in one.decisions}) == len(one.decisions) == 5


def test_several_documents_and_single_entries_are_read() -> None:
    log = read_log("decision: a\n---\n- decision: b\n---\n---\ndecisions:\n- decision: c\n", "p", now_ms=1)
    assert [each.decision for each in log.decisions] == ["a", "b", "c"]


entry = st.dictionaries(
    st.sampled_from(["decision", "reasoning", "confidence", "outcome", "score", "agent", "at", "context", "id", "x"]),
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=20), st.lists(st.integers(), max_size=2)),
)


@given(st.lists(st.one_of(entry, st.text(max_size=5), st.none()), max_size=6))
def test_whatever_a_log_holds_each_entry_is_taken_or_named(entries: list[object]) -> None:
    log = read_log(yamlio.dump(entries), "p", now_ms=1)
    assert len(log.decisions) + len(log.resolutions) + len(log.problems) == len(entries)
    for each in log.decisions:
        assert each.decision.strip()
        assert each.confidence is None or 0 <= each.confidence <= 1
