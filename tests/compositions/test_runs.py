"""What came of a run is written with its end, and counted by version and by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.compositions import runs
from ksi_mcp.compositions.evidence import mean_from
from ksi_mcp.errors import Invalid

PATTERN: dict[str, Any] = {
    "name": "desk",
    "type": "orchestration",
    "version": "2.1.0",
    "agents": {"clerk": {"prompt": "You help."}},
    "orchestration_logic": {"strategy": "Ask the clerk."},
}


@pytest.mark.parametrize(
    ("state", "outcome", "metrics", "success"),
    [
        ("completed", "success", None, True),
        ("completed", "Successfully merged", None, True),
        ("completed", "consensus", None, True),
        ("completed", "PASSED after 2 rounds", None, True),
        ("completed", "failed: no quorum", None, False),
        ("completed", "partial success", None, False),
        ("completed", "not successful", None, False),
        ("completed", "not_passed", None, False),
        ("completed", "timeout", None, False),
        ("completed", "inconclusive", None, None),
        ("completed", "", None, None),
        ("completed", None, None, None),
        ("failed", "success", None, False),
        ("stopped", "success", None, None),
        ("stopped", None, {"success": True}, True),
        ("completed", "success", {"success": False}, False),
        ("completed", "failure", {"success": 1}, True),
        ("completed", "success", {"success": 0.7}, True),
        ("completed", "success", {"success": "no"}, True),
    ],
)
def test_success_is_what_was_said(state: str, outcome: str | None, metrics: Any, success: bool | None) -> None:
    assert runs.success_of(state, outcome, metrics) is success


@given(st.text(max_size=300))
def test_any_outcome_is_a_success_a_failure_or_neither(outcome: str) -> None:
    assert runs.success_of("completed", outcome, None) in (True, False, None)
    assert runs.success_of("failed", outcome, None) is False


@pytest.mark.parametrize(
    ("score", "metrics", "says"),
    [
        (math.nan, None, "the score is nan"),
        (1e308, None, "the score is 1e"),
        (None, {"a": {"b": math.inf}}, r"metrics\.a\.b is inf"),
        (None, {"a": -1e13}, r"metrics\.a is -1"),
        (None, {str(n): n for n in range(51)}, "51 numbers"),
        (None, {"x" * 101: 1}, "more than 100 characters"),
    ],
)
def test_figures_that_cannot_be_reckoned_with_are_named(score: Any, metrics: Any, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        runs.check_figures(score, metrics)


async def complete(house: Any, pattern: str = "desk", **more: Any) -> str:
    run = str((await house.call("orchestration_start", pattern=pattern))["orchestration"])
    await house.call("orchestration_complete", orchestration=run, **more)
    return run


async def figures(house: Any, **which: Any) -> dict[str, runs.Performance]:
    return dict(await house.app.services.journal.read(lambda tx: runs.performance(tx, **which)))


async def test_the_record_of_a_run_is_written_with_its_end(open_house) -> None:
    async with open_house({"default": {"reply": "ok", "usage": {"input_tokens": 100, "output_tokens": 50}}}) as house:
        await house.call("composition_create", document=PATTERN)
        started = await house.call("orchestration_start", pattern="desk", model="m")
        run = started["orchestration"]
        for _ in range(2):
            await house.ask(started["agents"][0]["agent"])
        assert house.rows("SELECT * FROM composition_run") == []
        house.gate.ahead_ms += 60_000
        await house.call("orchestration_suspend", orchestration=run)
        house.gate.ahead_ms += 3_600_000
        await house.call("orchestration_resume", orchestration=run)
        house.gate.ahead_ms += 30_000
        await house.call("orchestration_suspend", orchestration=run)
        house.gate.ahead_ms += 7_200_000
        given_metrics = {"rounds": 3, "deep": {"x": 0.5, "ok": True}, "note": "text"}
        await house.call("orchestration_complete", orchestration=run, score=0.7, metrics=given_metrics)
        (made,) = (await house.app.services.journal.read(lambda tx: runs.by_ids(tx, [run]))).values()
        assert (made.name, made.hash[:12]) == ("desk", started["pattern"].partition("@")[2])
        assert (made.version, made.outcome, made.success, made.score) == ("2.1.0", "success", True, 0.7)
        assert made.metrics == {"rounds": 3, "deep.x": 0.5, "deep.ok": 1}
        assert (made.usd_micros, made.tokens, made.turns) == (400, 300, 2)
        assert 90 <= made.duration_s < 120  # neither pause counts, the one it ended in included
        assert (made.reported_by, made.origin, made.suite) == ("operator", None, None)


async def test_a_refused_end_leaves_no_record_and_a_stopped_run_says_nothing(open_house) -> None:
    async with open_house() as house:
        await house.call("composition_create", document=PATTERN)
        run = (await house.call("orchestration_start", pattern="desk"))["orchestration"]
        with pytest.raises(Invalid):
            await house.call("orchestration_complete", orchestration=run, score=2e12)
        assert house.rows("SELECT * FROM composition_run") == []
        await house.call("orchestration_control", orchestration=run, action="stop")
        assert house.rows("SELECT outcome, success, score FROM composition_run") == [(None, None, None)]


async def test_versions_are_counted_apart_and_together(open_house) -> None:
    async with open_house() as house:
        await house.call("composition_create", document=PATTERN)
        first = (await house.call("composition_get", name="desk", resolve=True))["hash"]
        for score in (0.1, 0.3):
            await complete(house, score=score)
        await house.call("composition_fork", parent="desk", name="desk_two", reason="to see",
                         modifications={"agents.clerk.prompt": "You think."})  # fmt: skip
        await complete(house, "desk_two", score=0.9, outcome="failure")
        by_name = await figures(house, names=["desk", "desk_two", "nobody"])
        assert set(by_name) == {"desk", "desk_two"}
        assert (by_name["desk"].runs, by_name["desk"].score.mean) == (2, pytest.approx(0.2))
        assert (by_name["desk"].success.n, by_name["desk"].success.mean) == (2, 1.0)
        assert (by_name["desk_two"].success.mean, by_name["desk_two"].score.low) == (0.0, None)
        whole = house.rows("SELECT DISTINCT hash FROM composition_run WHERE name = 'desk'")
        ((hash_of_desk,),) = whole
        assert hash_of_desk.startswith(first)
        by_hash = await figures(house, hashes=[hash_of_desk])
        assert by_hash == {hash_of_desk: by_name["desk"]}
        assert await figures(house, names=["desk"], evaluated=True) == {}
        shown = by_name["desk"].as_document()
        assert (shown["runs"], shown["avg_score"], shown["success_rate"]) == (2, 0.2, 1.0)


async def test_a_run_made_from_a_checkpoint_or_put_back_to_one_does_not_count_twice(open_house) -> None:
    async with open_house() as house:
        await house.call("composition_create", document=PATTERN)
        run = (await house.call("orchestration_start", pattern="desk"))["orchestration"]
        kept = (await house.call("checkpoint_create", orchestration=run))["checkpoint"]
        for _ in range(3):
            branch = await house.call("checkpoint_restore", checkpoint=kept, into="new", resume=True)
            await house.call("orchestration_complete", orchestration=branch["orchestration"], score=1)
        assert await figures(house, names=["desk"]) == {}
        assert house.rows("SELECT DISTINCT origin FROM composition_run") == [(f"run:{run}",)]
        await house.call("orchestration_complete", orchestration=run, score=0.2)
        await house.call("checkpoint_restore", checkpoint=kept)
        assert await figures(house, names=["desk"]) == {}
        await house.call("orchestration_complete", orchestration=run, score=0.4)
        found = (await figures(house, names=["desk"]))["desk"]
        assert (found.runs, found.score.mean) == (1, 0.4)


async def test_a_drained_run_is_recorded_once_its_last_turn_has_ended(open_house) -> None:
    async with open_house({"default": {"reply": "ok", "latency_s": 1}}) as house:
        await house.call("composition_create", document=PATTERN)
        started = await house.call("orchestration_start", pattern="desk", model="m")
        await house.call("agent_send", agent=started["agents"][0]["agent"], message="go")
        await house.started()
        await house.call("orchestration_complete", orchestration=started["orchestration"], mode="drain", score=0.6)
        assert house.rows("SELECT * FROM composition_run") == []
        house.gate.opened.set()
        await house.until(lambda: bool(house.rows("SELECT * FROM composition_run")))
        assert house.rows("SELECT score, success, turns, reported_by FROM composition_run") == [(0.6, 1, 1, "operator")]


async def test_a_claimed_run_is_kept_and_not_counted(open_house) -> None:
    async with open_house() as house:
        await house.call("composition_create", document=PATTERN)
        run = await complete(house, score=0.5)
        claim = {
            "name": "desk", "hash": "f" * 64, "version": "1", "outcome": "success", "success": 1, "score": 9.0,
            "metrics": None, "usd_micros": 1, "tokens": 1, "turns": 1, "duration_s": 1.0, "ended_at_ms": 1,
            "origin": "bundle:x", "reported_by": None, "suite": None,
        }  # fmt: skip
        await house.app.services.journal.commit(
            lambda tx: tx.run("compositions.put_run", {**claim, "run_id": "o_claim"})
        )
        assert (await figures(house, names=["desk"]))["desk"].score.mean == 0.5
        sample = await house.app.services.journal.read(lambda tx: runs.sample(tx, "desk"))
        assert [each.run_id for each in sample] == [run]


async def test_the_tally_is_what_the_runs_come_to_however_they_ended(open_house) -> None:
    async with open_house() as house:
        await house.call("composition_create", document=PATTERN)
        made = []
        for score, outcome in [(0.1, "success"), (None, "failure"), (0.7, "open"), (1e6, "success"), (1e6 + 1, "ok")]:
            run = str((await house.call("orchestration_start", pattern="desk"))["orchestration"])
            made.append((run, (await house.call("checkpoint_create", orchestration=run))["checkpoint"]))
            await house.call("orchestration_complete", orchestration=run, score=score, outcome=outcome)

        async def check(scores: list[float], successes: tuple[int, int], count: int) -> None:
            found = (await figures(house, names=["desk"]))["desk"]
            mean = math.fsum(scores) / len(scores)
            exact = mean_from(len(scores), mean, math.fsum((score - mean) ** 2 for score in scores))
            assert (found.score.mean, found.score.low) == (pytest.approx(exact.mean), pytest.approx(exact.low))
            assert (found.runs, round((found.success.mean or 0) * found.success.n), found.success.n) == (
                count, *successes
            )  # fmt: skip
            ((hash_of_desk,),) = house.rows("SELECT DISTINCT hash FROM composition_run")
            assert (await figures(house, hashes=[hash_of_desk]))[hash_of_desk] == found

        await check([0.1, 0.7, 1e6, 1e6 + 1], (3, 4), 5)
        await house.call("checkpoint_restore", checkpoint=made[3][1])
        await check([0.1, 0.7, 1e6 + 1], (2, 3), 4)
        await house.call("checkpoint_restore", checkpoint=made[4][1])
        await check([0.1, 0.7], (1, 2), 3)
        await house.call("orchestration_complete", orchestration=made[4][0], score=0.4, outcome="failure")
        await check([0.1, 0.7, 0.4], (1, 3), 4)
