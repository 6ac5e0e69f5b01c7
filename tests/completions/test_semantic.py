"""The semantic cache by itself: what is looked up, what it comes to, what is learnt, and that it never fails a turn."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.agents.history import PastTurn
from ksi_mcp.completions.chain import choice_of
from ksi_mcp.completions.embedding import Embedder, NoVector
from ksi_mcp.completions.looked import Looked
from ksi_mcp.completions.model import Loaded
from ksi_mcp.completions.request import render
from ksi_mcp.completions.semantic import MAX_PROMPT_CHARS, SemanticCache, nearest, same_words, scope_of
from ksi_mcp.db import Tx
from ksi_mcp.errors import Invalid, Refused
from ksi_mcp.permissions import agent_actor, fresh_context
from ksi_mcp.provider_config import SemanticConfig
from ksi_mcp.providers.base import Request, ToolSpec
from ksi_mcp.queues.model import changed

# Every text is like every other; one with "nearly" is 0.9 like them, one with "unlike" not at all.
EMBEDDER = """
import math, threading
called, release = [], threading.Event()
def embed(texts):
    called.extend(texts)
    return [point(text) for text in texts]
def point(text):
    if "unlike" in text: return [0.0, 0.0, 1.0]
    return [0.9, math.sqrt(0.19), 0.0] if "nearly" in text else [2.0, 0.0, 0.0]
def fails(texts): raise ValueError("no sk-ant-api03-canarycanarycanarycanary in " + texts[0])
def none(texts): return []
def two(texts): return [[1.0], [1.0]]
def nan(texts): return [[float("nan"), 1.0]]
def nought(texts): return [[0.0, 0.0]]
def endless(texts): return [[1e308, float("inf")]]
def empty(texts): return [[]]
def wide(texts): return [[1.0] * 9000]
def words(texts): return [["one"]]
def nothing(texts): return None
def leaves(texts): raise SystemExit(3)
def hangs(texts):
    release.wait(20)
    return [[1.0]]
"""
SCRIPT = {"default": {"reply": "about {{prompt}}", "usage": {"input_tokens": 10, "output_tokens": 10}}}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with embedders, good and bad."""
    folder = tmp_path / "embedders"
    folder.mkdir()
    name = f"embedders_{tmp_path.name}".replace("-", "_")
    (folder / f"{name}.py").write_text(EMBEDDER)
    monkeypatch.syspath_prepend(str(folder))
    return name


@dataclass
class Asked:
    """An answered turn, as the turn loop would have it before its first round."""

    item: Loaded
    request: Request
    call_id: int
    answer: str


async def asked(house: Any, agent: str, prompt: str, **changes: Any) -> Asked:
    """Have the prompt answered for real, and give it as it was before."""
    turn_id = (await house.ask(agent, prompt))["turn"]
    services = house.app.services

    def read(tx: Tx) -> Loaded:
        turn = changed(services.queues.get(tx, turn_id), cache="semantic")
        who = services.roster.get(tx, turn.session_id)
        now = PastTurn(turn_id=turn.turn_id, prompt=turn.prompt, at_ms=turn.created_at_ms, seq=turn.seq, rounds=())
        return Loaded(turn=turn, agent=who, earlier=[], now=now, choice=choice_of(who, 0))

    item = await services.journal.read(read)
    request = replace(render(item.agent, item.now, [], (), model=item.choice.model), **changes)
    ((call_id, answer),) = house.rows(
        "SELECT call_id, json_extract(answer, '$.text') FROM provider_call WHERE turn_id = ?", turn_id
    )
    return Asked(item=item, request=request, call_id=call_id, answer=answer)


def cache_of(house: Any, module: str, function: str = "embed", **config: Any) -> SemanticCache:
    return SemanticCache(house.app.services.journal, SemanticConfig(embedder=f"{module}:{function}", **config))


async def buy(house: Any, cache: SemanticCache, one: Asked, *, answer: str | None = None) -> Looked:
    """Look, let the call out, learn what the model said: what happens to a turn that is not served."""
    looked = await cache.look(one.item, one.request)
    assert looked is not None
    journal = house.app.services.journal
    assert await journal.commit(lambda tx: cache.note(tx, one.item, looked)) is None
    said = one.answer if answer is None else answer
    await journal.commit(lambda tx: cache.learn(tx, one.item, looked, one.call_id, said))
    return looked


def looks(house: Any) -> list[tuple[Any, ...]]:
    return house.rows("SELECT verdict, round(score, 3), reason, same_answer FROM semantic_look ORDER BY look_id")


async def test_the_same_question_in_other_words_is_served_with_its_source_and_its_likeness(open_house, module) -> None:
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        cache = cache_of(house, module, mode="serve")
        first = await asked(house, "a", "What is the capital of France?")
        assert (await buy(house, cache, first)).nearest is None
        again = await asked(house, "a", "Could you please tell me what the capital of France is?")
        looked = await cache.look(again.item, again.request)
        assert looked is not None
        assert (looked.serve, looked.similarity, looked.verdict) == (first.call_id, 1.0, "served")
        served = await house.app.services.journal.commit(lambda tx: cache.note(tx, again.item, looked))
        assert served == first.call_id
        assert looks(house) == [("served", 1.0, None, None)]
        assert house.rows("SELECT call_id, nearest FROM semantic_look") == [(first.call_id, first.item.turn.prompt)]


async def test_in_shadow_mode_nothing_is_served_and_it_is_noted_whether_the_model_said_the_same(
    open_house, module
) -> None:
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        cache = cache_of(house, module)
        await buy(house, cache, await asked(house, "a", "List the open tickets."), answer="One  and two.")
        for prompt in ("Please list the open tickets.", "List open tickets"):
            looked = await buy(house, cache, await asked(house, "a", prompt))
            assert (looked.serve, looked.verdict) == (None, "would_serve")
        assert [look[3] for look in looks(house)] == [0, 0]  # held against what the store says of the first call
        assert house.rows("SELECT COUNT(*) FROM semantic_entry") == [(3,)]


async def test_the_answers_are_held_against_each_other_without_regard_to_case_and_space(open_house, module) -> None:
    async with open_house({"default": {"reply": "It is Paris."}}) as house:
        await house.spawn("a")
        cache = cache_of(house, module)
        await buy(house, cache, await asked(house, "a", "What is the capital?"))
        await buy(house, cache, await asked(house, "a", "What's the capital?"), answer="it is\nPARIS")
        await buy(house, cache, await asked(house, "a", "Please, what is the capital?"), answer="Lyon")
        assert looks(house) == [("would_serve", 1.0, None, 1), ("would_serve", 1.0, None, 0)]
    assert same_words(" Yes. ", "yes")
    assert not same_words("7", "70")


async def test_a_near_miss_is_not_served_however_alike_and_the_reason_is_noted(open_house, module) -> None:
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        cache = cache_of(house, module, mode="serve")
        await buy(house, cache, await asked(house, "a", "Delete files older than 7 days."))
        looked = await buy(house, cache, await asked(house, "a", "Delete files older than 70 days."))
        assert (looked.serve, looked.verdict) == (None, "guarded")
        assert looks(house) == [("guarded", 1.0, "number: 70 / 7", 0)]


async def test_the_guard_is_shown_the_next_nearest_as_well(open_house, module) -> None:
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        cache = cache_of(house, module, mode="serve")
        right = await asked(house, "a", "Wait 7 days.")
        for one in (right, await asked(house, "a", "Wait 70 days."), await asked(house, "a", "Wait 700 days.")):
            await buy(house, cache, one)
        again = await asked(house, "a", "Please wait 7 days.")
        looked = await cache.look(again.item, again.request)
        assert looked is not None
        assert looked.serve == right.call_id


async def test_what_is_not_alike_enough_is_noted_and_what_is_not_alike_is_not(open_house, module) -> None:
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        cache = cache_of(house, module, mode="serve")
        await buy(house, cache, await asked(house, "a", "Go on."))
        assert (await buy(house, cache, await asked(house, "a", "Go nearly on."))).verdict == "below"
        assert (await buy(house, cache, await asked(house, "a", "Go on unlike."))).verdict is None
        assert looks(house) == [("below", 0.9, "words: nearly / -", 0)]


async def test_nothing_is_shared_beyond_a_run_a_model_a_role_or_an_expectation(open_house, module) -> None:
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        one = await asked(house, "a", "Who are you?")
        item, request = one.item, one.request
        others = {
            scope_of(item, request, "m:f"),
            scope_of(item, request, "m:g"),
            scope_of(replace(item, agent=replace(item.agent, orchestration_id="o_1")), request, "m:f"),
            scope_of(replace(item, turn=changed(item.turn, orchestration_id="o_1")), request, "m:f"),
            scope_of(replace(item, turn=changed(item.turn, expect='{"regex": "a"}')), request, "m:f"),
            scope_of(replace(item, choice=replace(item.choice, provider="other")), request, "m:f"),
            *(
                scope_of(item, replace(request, **{name: value}), "m:f")
                for name, value in [
                    ("model", "n"), ("system", "You do not."), ("max_tokens", 7), ("effort", "high"),
                    ("output_schema", {"type": "object"}),
                ]
            ),
        }  # fmt: skip
        assert len(others) == 11
        assert scope_of(item, replace(request, agent="b"), "m:f") in others
        written = changed(item.turn, expect='{"max_length": 3, "min_length": 1}')
        spaced = changed(item.turn, expect='{ "min_length":1,"max_length":3 }')
        assert len({scope_of(replace(item, turn=turn), request, "m:f") for turn in (written, spaced)}) == 1


async def test_only_single_prompts_without_tools_are_looked_up_where_it_was_asked_for(open_house, module) -> None:
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        one = await asked(house, "a", "Who are you?")
        item, request, cache = one.item, one.request, cache_of(house, module)
        assert cache.applies(item, request)
        assert not SemanticCache(house.app.services.journal, SemanticConfig()).applies(item, request)

        def with_turn(**changes: Any) -> Loaded:
            return replace(item, turn=changed(item.turn, **changes))

        asks = replace(item.agent, settings=replace(item.agent.settings, cache="semantic"))
        assert cache.applies(replace(with_turn(cache=None), agent=asks), request)
        assert not cache.applies(replace(with_turn(cache="exact"), agent=asks), request)
        assert not cache.applies(with_turn(cache=None), request)
        tool = ToolSpec(name="t", description="", input_schema={"type": "object"})
        assert not cache.applies(item, replace(request, tools=(tool,)))
        for provider in ("claude_cli", "external", "claude_cli@home"):
            assert not cache.applies(replace(item, choice=replace(item.choice, provider=provider)), request)
        put_in = replace(item.now, before=("By the way.",))
        assert not cache.applies(item, render(item.agent, put_in, [], (), model="m"))
        earlier = [replace(item.now, answer="I am.")]
        assert not cache.applies(item, render(item.agent, item.now, earlier, (), model="m"))
        forgetful = replace(item.agent, settings=replace(item.agent.settings, context_messages=1))
        assert cache.applies(item, render(forgetful, item.now, earlier, (), model="m"))
        for prompt in (" \n", "x" * (MAX_PROMPT_CHARS + 1)):
            now = replace(item.now, prompt=prompt)
            assert not cache.applies(with_turn(prompt=prompt), render(item.agent, now, [], (), model="m"))


@pytest.mark.parametrize(
    "function",
    ["fails", "none", "two", "nan", "nought", "endless", "empty", "wide", "words", "nothing", "leaves", "missing"],
)
async def test_an_embedder_that_fails_turns_the_look_off_with_one_line_and_no_key(
    open_house, module, function, caplog
) -> None:
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        cache, one = cache_of(house, module, function), await asked(house, "a", "Who are you?")
        with caplog.at_level(logging.WARNING, logger="ksi_mcp.completions.semantic"):
            assert await cache.look(one.item, one.request) is None
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith(f"turn {one.item.turn.turn_id} is not looked up in the semantic cache: the embedder ")
        assert "canary" not in line


@pytest.mark.parametrize("name", ["nowhere_to_be_found:embed", "os", "os:", ":embed", "a b:c", "../x:y"])
async def test_an_embedder_that_is_not_there_is_no_reason_to_fail(name: str) -> None:
    with pytest.raises(NoVector):
        await Embedder(name).vector("text")


async def test_an_embedder_that_hangs_is_not_waited_for_and_not_called_again(module) -> None:
    embedder = Embedder(f"{module}:hangs", limit_s=0.01)
    with pytest.raises(NoVector, match="longer than 0.01 s"):
        await embedder.vector("one")
    with pytest.raises(NoVector, match=r"busy|longer"):
        await embedder.vector("two")
    sys.modules[module].release.set()


async def test_texts_are_embedded_one_after_the_other_and_come_out_with_length_one(module) -> None:
    embedder = Embedder(f"{module}:embed")
    assert list(await embedder.vector("text")) == [1.0, 0.0, 0.0]
    assert list(await embedder.vector("unlike")) == [0.0, 0.0, 1.0]
    assert sys.modules[module].called == ["text", "unlike"]


async def test_only_the_newest_of_a_scope_are_kept(open_house, module) -> None:
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        cache = cache_of(house, module, mode="serve", entries=2)
        bought = [await asked(house, "a", f"Say {word}.") for word in ("red", "green", "blue")]
        for one in bought:
            await buy(house, cache, one)
        kept = house.rows("SELECT call_id, prompt FROM semantic_entry ORDER BY call_id")
        assert kept == [(one.call_id, one.item.turn.prompt) for one in bought[1:]]
        for one, verdict in zip(bought, ("guarded", "served", "served"), strict=True):
            looked = await cache.look(one.item, one.request)
            assert looked is not None
            assert looked.verdict == verdict


async def test_what_another_process_learnt_is_found_and_so_is_what_came_late(open_house, module) -> None:
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        cache, other = (cache_of(house, module, mode="serve") for _ in range(2))
        early, late = [await asked(house, "a", text) for text in ("Say red.", "Say blue.")]
        await buy(house, cache, late)
        await buy(house, other, early)  # its call is the older one
        for one in (early, late):
            looked = await cache.look(one.item, one.request)
            assert looked is not None
            assert looked.serve == one.call_id


async def test_an_answer_that_was_cleared_away_is_not_served(open_house, module) -> None:
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        cache = cache_of(house, module, mode="serve")
        first = await asked(house, "a", "Who are you?")
        await buy(house, cache, first)
        looked = await cache.look(first.item, first.request)
        assert looked is not None
        gone = replace(looked, nearest=replace(looked.nearest, call_id=9_999))
        assert await house.app.services.journal.commit(lambda tx: cache.note(tx, first.item, gone)) is None
        assert looks(house) == []


async def test_a_turn_that_looks_again_is_counted_once(open_house, module) -> None:
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        cache = cache_of(house, module)
        await buy(house, cache, await asked(house, "a", "Say red."))
        again = await asked(house, "a", "Say blue.")
        for _ in range(3):
            looked = await cache.look(again.item, again.request)
            await house.app.services.journal.commit(lambda tx, looked=looked: cache.note(tx, again.item, looked))
        assert len(looks(house)) == 1


async def test_an_answer_without_words_is_not_learnt(open_house, module) -> None:
    async with open_house(SCRIPT) as house:
        await house.spawn("a")
        await buy(house, cache_of(house, module), await asked(house, "a", "Say red."), answer=" \n")
        assert house.rows("SELECT * FROM semantic_entry") == []


async def test_vectors_of_another_size_are_passed_over(module) -> None:
    one, other = await Embedder(f"{module}:embed").vector("a"), await Embedder(f"{module}:embed").vector("nearly")
    assert nearest(one, {1: one[:2], 2: one, 3: other, 4: one}, at_least=0.85) == [(1.0, 4), (1.0, 2), (0.9, 3)]


async def test_the_report_has_the_figures_and_the_pairs_and_is_the_operators_only(open_house, module) -> None:
    async with open_house(SCRIPT, semantic_cache=SemanticConfig(embedder=None)) as house:
        agent = await house.spawn("a", ("messaging",))
        empty = await house.call("completion_cache_report")
        assert (empty["on"], empty["mode"], empty["entries"], empty["pairs"]) == (False, "shadow", 0, [])
        cache = cache_of(house, module)
        for prompt, answer in [
            ("Say red.", None), ("Please say red.", "about Say red."), ("Say red, please.", "blue"),
            ("Say blue.", None), ("Say nearly red.", None), ("x" * 1_000, None),
        ]:  # fmt: skip
            await buy(house, cache, await asked(house, "a", prompt), answer=answer)
        report = await house.call("completion_cache_report", limit=2)
        assert report["would_serve"] == {"looks": 2, "same_answer": 1, "other_answer": 1}
        assert report["false_hit_rate"] == 0.5
        assert report["guarded"] == {"looks": 2, "same_answer": 0, "other_answer": 2}
        assert report["below"]["looks"] == 1
        assert (report["entries"], report["scopes"], report["served"]) == (6, 1, 0)
        assert [(band["score"], sorted(band)) for band in report["by_score"]] == [
            (1.0, ["agreed", "refused", "score"]), (0.9, ["refused", "score"]),
        ]  # fmt: skip
        assert len(report["pairs"][0]["prompt"]) < 400
        seen = [*report["pairs"]]
        while "cursor" in report:
            report = await house.call("completion_cache_report", limit=2, cursor=report["cursor"])
            seen += report["pairs"]
        assert [pair["verdict"] for pair in seen] == ["guarded", "below", "guarded", "would_serve", "would_serve"]
        (false_hit,) = (await house.call("completion_cache_report", verdict="would_serve", same_answer=False))["pairs"]
        assert (false_hit["prompt"], false_hit["agent"], false_hit["score"]) == ("Say red, please.", agent, 1.0)
        with pytest.raises(Invalid, match="not one of ours"):
            await house.call("completion_cache_report", cursor="1; DROP TABLE turn")
        with pytest.raises(Refused):
            await house.app.toolbox.call(fresh_context(agent_actor(agent)), "completion_cache_report", {})
