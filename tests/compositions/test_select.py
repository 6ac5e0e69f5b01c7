"""Choosing a composition for a task: what counts, what excludes, and what is said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.compositions.evidence import mean_from, share
from ksi_mcp.compositions.fitting import FITS, Index
from ksi_mcp.compositions.model import parse_composition
from ksi_mcp.compositions.requirements import REQUIREMENTS, checks_of
from ksi_mcp.compositions.runs import Performance
from ksi_mcp.compositions.select import Selection, choose, key_of, learn
from ksi_mcp.compositions.store import Head
from ksi_mcp.compositions.terms import stem, words
from ksi_mcp.errors import Invalid

DAY_MS = 86_400_000
NOW_MS = 1_000 * DAY_MS


def pattern(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "orchestration", "description": "Two sides debate; a judge decides.", **more}


def ran(runs: int, successes: int, *, ended_at_ms: int = NOW_MS, score: float | None = None) -> Performance:
    return Performance(
        runs=runs,
        success=share(successes, runs),
        score=mean_from(runs if score is not None else 0, score or 0.0, 0.0),
        avg_cost_usd=0.1,
        avg_tokens=10,
        avg_turns=2,
        avg_duration_s=3,
        last_ended_at_ms=ended_at_ms,
    )


def select(
    task: str,
    *documents: dict[str, Any],
    requirements: dict[str, Any] | None = None,
    performance: dict[str, Performance] | None = None,
    limit: int = 5,
) -> Selection:
    made = [parse_composition(document, what="the test") for document in documents]
    heads = [
        Head(
            name=each.name,
            type=each.type,
            version=each.version,
            description=each.description,
            tags=each.tags,
            hash=each.hash,
            layer="user",
        )
        for each in made
    ]
    by_name = {each.name: each.document for each in made}
    index = Index()
    learn(index, heads, by_name)
    return choose(
        index,
        task,
        [head for head in heads if head.type == "orchestration"],
        checks=checks_of(requirements or {}),
        documents=by_name,
        performance=performance or {},
        limit=limit,
        now_ms=NOW_MS,
    )


def names(selection: Selection) -> list[str]:
    return [choice.head.name for choice in selection.choices]


# -- what counts -------------------------------------------------------------------------------------


def test_a_choice_says_which_words_spoke_for_it_and_where_they_stand() -> None:
    found = select("debate whether to move", pattern("town_debate", tags=["debate"]), pattern("other", description="x"))
    (choice,) = found.choices
    assert choice.head.name == "town_debate"
    assert choice.score >= FITS
    text = "; ".join(choice.reasons)
    assert "made for debate, which 'debate'" in text
    assert "'debate' is in its name, tags, description" in text
    assert "never run here" in text


def test_other_words_for_the_same_purpose_find_it() -> None:
    for task in ("argue for and against", "pros and cons of moving", "a devil's advocate against the move"):
        assert names(select(task, pattern("town_debate"))) == ["town_debate"]


def test_what_a_document_says_that_it_is_good_for_is_searched_and_what_it_is_not_for_counts_against_it() -> None:
    plain = {"name": "p1", "type": "orchestration", "description": "Agents at work."}
    good = plain | {"name": "p2", "metadata": {"good_for": ["sommelier pairing of wines with a menu"]}}
    assert names(select("pairing wines for a menu", plain, good)) == ["p2"]
    bad = good | {"name": "p3", "metadata": good["metadata"] | {"not_for": ["large menu tasting"]}}
    found = select("wines pairing, tasting a large menu", good, bad)
    better, worse = (*found.choices, *found.nearest)
    assert (better.head.name, worse.head.name) == ("p2", "p3")
    assert worse.score < better.score
    assert "it says it is not for 'large menu tasting'" in worse.reasons


def test_a_word_in_a_prompt_alone_makes_nothing_fit() -> None:
    hidden = pattern("quiet", description="x", agents={"a": {"prompt": "zebra giraffe gnu okapi " * 20}})
    found = select("zebra giraffe gnu okapi", hidden)
    assert found.choices == ()
    assert found.nearest[0].score < 0.3
    assert "in its prompts or strategy" in "; ".join(found.nearest[0].reasons)


def test_a_description_that_repeats_a_word_gains_nothing_by_it() -> None:
    plain, stuffed = pattern("a_plain"), pattern("b_stuffed", description="debate " * 400)
    first = select("debate the tax", plain, stuffed)
    assert abs(first.choices[0].score - first.choices[1].score) < 0.1


# -- measured performance ----------------------------------------------------------------------------


def test_of_two_that_fit_alike_the_one_that_did_better_here_comes_first_and_says_how_sure_that_is() -> None:
    found = select(
        "debate it",
        pattern("a"),
        pattern("b"),
        performance={"a": ran(30, 10), "b": ran(30, 27, score=0.8)},
    )
    assert names(found) == ["b", "a"]
    reason = next(reason for reason in found.choices[0].reasons if reason.startswith("measured here"))
    assert reason == (
        "measured here: 30 runs, success 0.90 (of 30, 95 % interval 0.74 to 0.97), "
        "score 0.80 (of 30, 95 % interval 0.80 to 0.80), the last one today"
    )


def test_one_lucky_run_counts_less_than_many_good_ones() -> None:
    found = select("debate it", pattern("a"), pattern("b"), performance={"a": ran(1, 1), "b": ran(40, 38)})
    assert names(found) == ["b", "a"]


def test_experience_lifts_nothing_into_fitting() -> None:
    found = select("cook a soup", pattern("a"), performance={"a": ran(500, 500, score=1.0)})
    assert found.choices == ()
    assert all(near.score < FITS for near in found.nearest)


def test_of_two_alike_the_one_that_ran_lately_comes_first() -> None:
    old = ran(10, 5, ended_at_ms=NOW_MS - 400 * DAY_MS)
    found = select("debate it", pattern("a"), pattern("b"), performance={"a": old, "b": ran(10, 5)})
    assert names(found) == ["b", "a"]
    assert "the last one 400 days ago" in "; ".join(found.choices[1].reasons)


def test_figures_that_came_with_a_file_count_for_nothing() -> None:
    boasting = pattern("b", performance={"runs": 1_000, "avg_score": 0.99})
    found = select("debate it", pattern("a"), boasting)
    assert names(found) == ["a", "b"]
    assert found.choices[0].score == found.choices[1].score
    assert "figures that came with its file do not count" in found.choices[1].reasons


# -- requirements ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requirements", "left"),
    [
        ({"tags": ["X"]}, "a"),
        ({"capabilities": ["messaging"]}, "a"),
        ({"capabilities": ["spawn_agents"]}, "b"),
        ({"without_capabilities": ["spawn_agents"]}, "a"),
        ({"variables": ["task"]}, "a"),
        ({"descends_from": "root"}, "b"),
        ({"metadata": {"author": "me"}}, "a"),
        ({"metadata": {"performance.runs": {">": 5}}}, "b"),
        ({"metadata": {"claimed.runs": {">": 90}}}, "a"),
        ({"max_usd": 3}, "a"),
        ({"max_turns": 10}, "a"),
        ({"min_agents": 2}, "b"),
        ({"max_agents": 1}, "a"),
        ({"min_runs": 5}, "b"),
        ({"min_success_rate": 0.5}, "b"),
        ({"min_score": 0.7}, "b"),
    ],
)
def test_a_requirement_that_is_not_met_excludes_and_says_so(requirements: dict[str, Any], left: str) -> None:
    profile = {"name": "profile", "type": "agent", "capabilities": ["base", "spawn_agents"], "prompt": "x"}
    middle = pattern("middle", description="nothing", lineage={"parent": "root@1.0.0", "parent_hash": "0" * 64})
    a = pattern(
        "a",
        author="me",
        tags=["x"],
        variables={"task": {"description": "y"}},
        agents={"one": {"capabilities": ["messaging"]}},
        budget={"usd": 3, "turns": 10},
        performance={"runs": 99},
    )
    b = pattern(
        "b",
        variables={"other": {"description": "y"}, "more": {"default": 1}},
        agents={"one": {"composition": "profile"}, "two": {"composition": "profile"}},
        budget={"usd": 4, "turns": 20},
        lineage={"parent": "middle@1.0.0", "parent_hash": "0" * 64},
    )
    performance = {"b": ran(10, 9, score=0.8)}
    found = select("debate it", profile, middle, a, b, requirements=requirements, performance=performance)
    assert names(found) == [left]
    assert [each.name for each in found.excluded] == [{"a": "b", "b": "a"}[left]]
    assert found.excluded[0].unmet[0]
    assert any(reason.startswith("required: ") for reason in found.choices[0].reasons)


def test_if_all_that_fit_are_excluded_none_fits_and_why_is_said() -> None:
    found = select("debate it", pattern("a"), requirements={"max_usd": 1})
    assert found.choices == ()
    assert found.none_fits == "what would fit does not meet the requirements: 'a'"
    assert found.excluded[0].unmet == ("it names no budget in usd, and at most 1 is asked for",)


@pytest.mark.parametrize(
    ("requirements", "said"),
    [
        ({"colour": 1}, "unknown requirement 'colour'"),
        ({"a": 1, "b" * 500: 2}, "unknown requirements 'a', 'bbb"),
        ({"max_usd": "cheap"}, "max_usd must be a number of 0 or more, not 'cheap'"),
        ({"max_usd": True}, "must be a number"),
        ({"min_runs": float("nan")}, "must be a number"),
        ({"min_runs": -1}, "must be a number"),
        ({"tags": 7, "min_agents": []}, "tags must be a list of at most 50 words, not 7; min_agents must be"),
        ({"tags": ["x"] * 51}, "must be a list of at most 50 words"),
        ({"layer": "cellar"}, "is none of builtin, user, project"),
        ({"metadata": "author"}, "must be a filter"),
        ({"metadata": {"a..b": 1}}, "filter path"),
        ({"descends_from": "../../etc"}, "is not a composition's name"),
    ],
)
def test_a_requirement_that_cannot_be_read_is_refused_with_what_there_is(
    requirements: dict[str, Any], said: str
) -> None:
    with pytest.raises(Invalid) as caught:
        checks_of(requirements)
    assert said in caught.value.message
    assert len(caught.value.text()) < 800


def test_the_refusal_of_an_unknown_requirement_names_all_that_there_are() -> None:
    with pytest.raises(Invalid) as caught:
        checks_of({"x": 1})
    assert all(name in (caught.value.hint or "") for name in REQUIREMENTS)


# -- none fits ---------------------------------------------------------------------------------------


def test_none_fits_names_the_nearest_with_its_score() -> None:
    found = select("bake bread for the judge", pattern("town_debate"), pattern("second", description="Nothing."))
    assert found.choices == ()
    assert found.none_fits is not None
    assert "the nearest, 'town_debate', reaches 0." in found.none_fits
    assert found.nearest[0].head.name == "town_debate"


def test_an_empty_library_and_a_task_without_words_say_what_is_the_matter() -> None:
    assert select("debate it").none_fits == "the library has nothing of that type"
    assert select("?! ... to be or not to be", pattern("a")).none_fits == (
        "no word of the task says what kind of work it is"
    )


@pytest.mark.parametrize("task", ["", "   \n\t "])
def test_an_empty_task_is_refused(task: str) -> None:
    with pytest.raises(Invalid, match="the task is empty"):
        select(task, pattern("a"))


# -- hostile -----------------------------------------------------------------------------------------


def test_a_task_of_ten_thousand_words_is_read_as_far_as_it_says() -> None:
    found = select("debate the tax " + "lorem ipsum " * 5_000 + "tournament", pattern("a"))
    assert names(found) == ["a"]
    assert found.note == "only the first 300 words of the task were read"


@pytest.mark.parametrize(
    "task",
    [
        "(a+)+$ .* [^x]{99999} debate",
        "debate'; DROP TABLE composition; --",
        "DÉBATE\u0301 \u202e\ufdfa the \U0001f600 tax",
        "debate" + "\x00\x01\x7f",
        "de\u00adbate debate " + "a" * 100_000,
    ],
)
def test_odd_characters_are_only_characters(task: str) -> None:
    assert names(select(task, pattern("a"))) == ["a"]


@given(st.text(min_size=1, max_size=300))
def test_any_text_gives_an_answer_and_the_same_one_twice(task: str) -> None:
    library = (pattern("a"), pattern("b", description=task[:80].strip() or "x"))
    if not task.strip():
        return
    first, second = select(task, *library), select(task, *library)
    assert first == second
    assert bool(first.choices) != bool(first.none_fits)
    assert all(0 <= choice.score <= 1 for choice in (*first.choices, *first.nearest))


def test_documents_of_any_shape_can_be_taken_apart() -> None:
    odd = [
        pattern(f"odd_{i}", **more)
        for i, more in enumerate(
            [
                {"agents": [1, None, {"name": "x"}, {"role": ["y"]}], "variables": [1]},
                {"agents": "none", "orchestration_logic": 7, "metadata": ["x"], "good_for": {"a": 1}},
                {"metadata": {"good_for": [None, 3, "debate"], "not_for": [""], "capabilities": 1}},
                {"lineage": "x", "budget": [1], "extends": [None, "../x", 3], "capabilities": {"base": True}},
                {"extends": "odd_5", "lineage": {"parent": "odd_5@1"}},
                {"extends": "odd_4", "lineage": {"parent": "odd_4@1"}},
            ]
        )
    ]
    requirements = {"without_capabilities": ["x"], "min_agents": 0}
    assert len(names(select("debate it", *odd, requirements=requirements, limit=50))) == len(odd)


# -- words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forms",
    [
        "compare compares compared comparing comparison comparisons",
        "translate translation translator translators translating",
        "analyse analyze analysis analyses analyst analysts analysing",
        "prioritise prioritize prioritised prioritization prioritising",
        "agree agrees agreed agreement agreements",
        "study studies studied",
        "classify classified classification",
        "review reviewer reviewers reviewing reviewed",
        "summary summaries summarise summarize",
        "vote votes voted voting",
        "win wins winner winning",
    ],
)
def test_the_forms_of_a_word_have_one_stem(forms: str) -> None:
    assert len({stem(form) for form in forms.split()}) == 1


def test_words_of_different_kinds_keep_apart() -> None:
    for pair in ("wine win", "several severity", "find findings", "minor minority", "compete competitor"):
        one, other = pair.split()
        assert stem(one) != stem(other)


@given(st.text(max_size=200))
def test_words_and_stems_take_any_text(text: str) -> None:
    for word in words(text):
        assert 0 < len(stem(word)) <= 40


def test_a_change_that_matters_makes_another_key_and_the_index_learns_it_once() -> None:
    made = parse_composition(pattern("a"), what="the test")
    head = Head(
        name="a", type="orchestration", version="1", description=made.description, tags=(), hash=made.hash, layer="user"
    )
    index = Index()
    learn(index, [head], {"a": made.document})
    learn(index, [head], {"a": made.document})
    assert len(index) == 1
    assert index.missing([key_of(head)]) == []
