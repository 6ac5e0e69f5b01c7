from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.compositions.reading import Problems
from ksi_mcp.compositions.settings import settings_of


def read(**body: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    problems = Problems()
    settings = settings_of(body, "agents.a", problems)
    return settings, [(problem.path, problem.message) for problem in problems.found]


def test_every_setting_is_read_next_to_the_prompt_and_under_settings() -> None:
    said = {
        "max_tokens": "100", "timeout_s": 5, "effort": "low", "expect": {"min_length": 1}, "cache": "exact",
        "fallback": "other", "supervision": {"on_failure": "retry"}, "context": {"max_messages": 9, "max_tokens": "70"},
    }  # fmt: skip
    found, problems = read(**said)
    assert (found, problems) == read(settings=said)
    assert problems == []
    assert found == {
        "max_tokens": 100, "timeout_s": 5.0, "effort": "low", "expect": {"min_length": 1}, "cache": "exact",
        "fallback": ["other"], "supervision": {"on_failure": "retry"}, "context_messages": 9, "context_tokens": 70,
    }  # fmt: skip


def test_no_cache_is_no_cache_and_prose_is_no_context() -> None:
    assert read(cache=False, context="They met in a bar.") == ({"cache": None}, [])
    assert read(cache="off") == ({"cache": None}, [])


@pytest.mark.parametrize(
    ("body", "path", "message"),
    [
        ({"context": 5}, "agents.a.context", "must be a mapping"),
        ({"context": {"summarize": True}}, "agents.a.context.summarize", "is no part of a context"),
        ({"context": {"max_messages": 0}}, "agents.a.context_messages", "must be a whole number above 0"),
        ({"expect": "JSON"}, "agents.a.expect", "must be a mapping, not text"),
        ({"cache": "fuzzy"}, "agents.a.cache", "must be 'exact', 'semantic' or off, not 'fuzzy'"),
        ({"fallback": ["m", 5]}, "agents.a.fallback.1", "must name a model"),
        ({"fallback": ["m", "m"]}, "agents.a.fallback.1", "is there twice"),
        ({"fallback": ["m"] * 11}, "agents.a.fallback", "11 models, the limit is 10"),
        ({"supervision": 5}, "agents.a.supervision", "must be text or a mapping"),
    ],
)
def test_what_cannot_be_meant_is_noted_with_its_place(body: dict[str, Any], path: str, message: str) -> None:
    _, problems = read(**body)
    assert [where for where, _ in problems] == [path]
    assert message in problems[0][1]
