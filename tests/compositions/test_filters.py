"""Filters on what a document says."""

from __future__ import annotations

import pytest

from ksi_mcp.compositions.filters import matcher
from ksi_mcp.errors import Invalid

DOCUMENT = {
    "tags": ["tournament", "adaptive"],
    "performance": {"avg_score": 0.82, "runs": 47},
    "learnings": [{"confidence": 0.9}],
    "author": "Ada",
}


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"performance.avg_score": {">": 0.7}}, True),
        ({"performance.avg_score": {">": 0.9}}, False),
        ({"performance.avg_score": {">=": 0.82, "<": 1}}, True),
        ({"performance.runs": {"<=": 46}}, False),
        ({"performance.runs": {">": "many"}}, False),
        ({"tags": ["adaptive"]}, True),
        ({"tags": ["adaptive", "research"]}, False),
        ({"author": "Ada"}, True),
        ({"author": {"contains": "ad"}}, True),
        ({"author": {"!=": "Bob"}}, True),
        ({"author": {"in": ["Ada", "Bob"]}}, True),
        ({"missing.path": {"exists": False}}, True),
        ({"missing.path": {"exists": True}}, False),
        ({"missing.path": {"!=": 1}}, False),
        ({"learnings.0.confidence": {"==": 0.9}}, True),
        ({"learnings.7.confidence": {"==": 0.9}}, False),
    ],
)
def test_a_filter_matches_what_it_says(conditions: dict[str, object], *, expected: bool) -> None:
    assert matcher(conditions)(DOCUMENT) is expected


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"a": {"~=": 1}}, "unknown operator '~='"),
        ({"a..b": 1}, "filter path"),
        ({"a": {"in": "text"}}, "wants a list"),
        ({f"k{i}": 1 for i in range(51)}, "51 conditions"),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused(conditions: dict[str, object], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        matcher(conditions)
