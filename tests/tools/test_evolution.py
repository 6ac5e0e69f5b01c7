"""Comparing, promoting, learning, evaluating: what is refused, and whose word counts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ksi_mcp.errors import Conflict, Invalid, KsiError, NotFound, Refused
from ksi_mcp.permissions import OPERATOR, agent_actor, fresh_context

PATTERN: dict[str, Any] = {
    "name": "desk",
    "type": "orchestration",
    "version": "1.0.0",
    "agents": {"clerk": {"prompt": "You guess.", "capabilities": ["base"]}},
    "orchestration_logic": {"strategy": "Ask the clerk."},
}
MAKER = ("base", "messaging", "compositions", "orchestration", "decisions", "spawn_agents")
SUITE: dict[str, Any] = {
    "name": "desk_cases",
    "type": "evaluation",
    "cases": [
        {"name": "easy", "input": "easy", "expect": "right", "weight": 3},
        {"name": "hard", "input": "hard", "expect": {"regex": "^right$"}},
        {"name": "odd", "input": {"of": 7}, "expect": {"json_schema": {"type": "object"}}},
    ],
}
SCRIPT = {
    "replies": [
        {"match": {"system": "/You weigh/", "prompt": "/easy|hard/"}, "reply": "right"},
        {"match": {"system": "/You guess/", "prompt": "/easy/"}, "reply": "right"},
        {"match": {"prompt": "/of/"}, "reply": '{"seen": true}'},
    ],
    "default": {"reply": "wrong"},
}


async def act(house: Any, actor: str, tool: str, /, **args: Any) -> dict[str, Any]:
    return dict((await house.app.toolbox.call(fresh_context(agent_actor(actor)), tool, args)).data)


async def desks(house: Any, by: Any = None) -> None:
    call = by or house.call
    await house.call("composition_create", document=PATTERN)
    await call(
        "composition_fork",
        parent="desk",
        name="desk_two",
        reason="to see",
        modifications={"agents.clerk.prompt": "You weigh."},
    )


async def runs(call: Any, pattern: str, scores: list[float], **more: Any) -> list[str]:
    made = []
    for score in scores:
        run = (await call("orchestration_start", pattern=pattern))["orchestration"]
        await call("orchestration_complete", orchestration=run, score=score, **more)
        made.append(run)
    return made


def library(house: Any) -> dict[str, bytes]:
    root = house.home.root / "compositions"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.yaml"))}


LOW, HIGH = [0.1, 0.2, 0.3] * 4, [0.7, 0.8, 0.9] * 4


async def test_an_agent_cannot_promote_its_fork_on_scores_that_agents_reported(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("maker", MAKER)
        friend = await house.spawn("friend", MAKER)

        async def as_agent(tool: str, /, **args: Any) -> dict[str, Any]:
            return await act(house, agent, tool, **args)

        async def as_friend(tool: str, /, **args: Any) -> dict[str, Any]:
            return await act(house, friend, tool, **args)

        await desks(house, as_agent)
        await runs(house.call, "desk", LOW)
        await runs(as_agent, "desk_two", [99.0] * 12)
        await runs(as_friend, "desk_two", [99.0] * 12)
        # Drained runs end as the server's doing, and are still reported by who said so.
        for call in (as_agent, as_friend):
            run = (await call("orchestration_start", pattern="desk_two"))["orchestration"]
            await call("orchestration_complete", orchestration=run, score=99.0, mode="drain")
        before = library(house)
        for one in (as_agent, as_friend):
            with pytest.raises(Conflict, match="not enough runs: 0 of 10 for b"):
                await one("composition_promote", name="desk_two")
        assert library(house) == before
        assert house.events("composition:promoted") == []

        # The operator is told whose word it is, and decides.
        seen = await house.call("composition_promote", name="desk_two", dry_run=True)
        assert seen["evidence"]["b"]["reported_by"] == {f"agent:{agent}": 13, f"agent:{friend}": 13}
        assert any("who made it" in note for note in seen["evidence"]["notes"])

        # What the operator reported counts for the agent too.
        await runs(house.call, "desk_two", HIGH)
        done = await as_agent("composition_promote", name="desk_two")
        assert (done["evidence"]["b"]["n"], done["evidence"]["b"]["mean"]) == (12, 0.8)
        (told,) = house.events("composition:promoted")
        assert told["evidence"]["after"]["n"] == 12


async def test_without_the_capability_nothing_is_promoted_or_learned(open_house) -> None:
    async with open_house() as house:
        agent = await house.spawn("reader", ("base", "orchestration"))
        await desks(house)
        made = await runs(house.call, "desk", LOW)
        await runs(house.call, "desk_two", HIGH)
        before = library(house)
        with pytest.raises(Refused, match="compositions"):
            await act(house, agent, "composition_promote", name="desk_two")
        with pytest.raises(Refused, match="compositions"):
            await act(house, agent, "composition_add_learning", name="desk", insight="x", confidence=1, evidence=made)
        assert library(house) == before
        assert (await act(house, agent, "composition_compare", a="desk", b="desk_two"))["verdict"] == "b is better"


async def test_a_cheaper_fork_that_fails_more_often_is_not_promoted(open_house) -> None:
    async with open_house() as house:
        await desks(house)
        for n in range(12):
            for pattern in ("desk", "desk_two"):
                run = (await house.call("orchestration_start", pattern=pattern))["orchestration"]
                steps = 9 + n % 2 if pattern == "desk" else 1 + n % 2
                outcome = "success" if pattern == "desk" else "failure"
                await house.call("orchestration_complete", orchestration=run, outcome=outcome, metrics={"steps": steps})
        shown = await house.call("composition_compare", a="desk", b="desk_two", metric="metrics.steps", better="lower")
        assert shown["verdict"] == "b is better"
        assert shown["notes"] == ["desk_two succeeds less often than desk"]
        with pytest.raises(Refused, match="succeeds less often"):
            await house.call("composition_promote", name="desk_two", metric="metrics.steps", better="lower")


async def test_a_metric_that_only_the_good_runs_report_is_no_evidence(open_house) -> None:
    async with open_house() as house:
        await desks(house)
        await runs(house.call, "desk", LOW)
        await runs(house.call, "desk_two", HIGH)
        for _ in range(12):
            run = (await house.call("orchestration_start", pattern="desk_two"))["orchestration"]
            await house.call("orchestration_complete", orchestration=run)
        with pytest.raises(Conflict, match="only 12 of 24 runs of desk_two say score"):
            await house.call("composition_promote", name="desk_two")


async def test_a_built_in_parent_is_shadowed_and_its_file_left_alone(open_house) -> None:
    async with open_house() as house:
        await house.call("composition_fork", parent="consensus", name="consensus_two", reason="fewer rounds",
                         modifications={"variables.max_rounds.default": 2})  # fmt: skip
        given = {"question": "x"}
        for name, scores in (("consensus", LOW), ("consensus_two", HIGH)):
            for score in scores:
                run = (await house.call("orchestration_start", pattern=name, vars=given))["orchestration"]
                await house.call("orchestration_complete", orchestration=run, score=score)
        built_in = await house.call("composition_get", name="consensus")
        assert built_in["layer"] == "builtin"
        done = await house.call("composition_promote", name="consensus_two")
        assert (done["name"], done["layer"]) == ("consensus", "user")
        now = await house.call("composition_get", name="consensus")
        assert (now["layer"], now["version"]) == ("user", done["version"])
        assert now["document"]["variables"]["max_rounds"]["default"] == 2
        old = await house.call("composition_get", name=f"consensus@{built_in['hash']}")
        assert old["document"] == built_in["document"]


@pytest.mark.parametrize("value", ["NaN", "inf", float("nan"), float("-inf"), 1e308, 1e13, "1" * 400])
async def test_a_score_that_no_statistics_can_be_made_of_ends_nothing(open_house, value: Any) -> None:
    async with open_house() as house:
        await desks(house)
        run = (await house.call("orchestration_start", pattern="desk"))["orchestration"]
        wrong: list[dict[str, Any]] = [{"score": value}]
        if not isinstance(value, str):  # text among the metrics is no number, and none of the statistics
            wrong.append({"metrics": {"deep": {"x": value}}})
        for given in wrong:
            for mode in ("now", "drain"):
                with pytest.raises(KsiError):
                    await house.call("orchestration_complete", orchestration=run, mode=mode, **given)
        assert (await house.call("orchestration_status", orchestration=run))["state"] == "running"
        assert house.rows("SELECT * FROM composition_run") == []


async def test_words_of_a_megabyte_are_refused_and_leave_nothing(open_house) -> None:
    async with open_house() as house:
        await desks(house)
        (made,) = await runs(house.call, "desk", [0.5])
        run = (await house.call("orchestration_start", pattern="desk"))["orchestration"]
        huge, before = "x" * 1_000_000, library(house)
        with pytest.raises(Invalid, match="limit is 200"):
            await house.call("orchestration_complete", orchestration=run, outcome=huge)
        decided = (await house.call("composition_track_decision", pattern="desk", decision="x"))["decision_id"]
        with pytest.raises(Invalid, match="limit is 200"):
            await house.call("decision_resolve", decision_id=decided, outcome=huge)
        with pytest.raises(Invalid, match="insight"):
            await house.call("composition_add_learning", name="desk", insight=huge, confidence=1, evidence=[made])
        with pytest.raises(KsiError):
            await house.call("composition_promote", name="desk_two", reason=huge)
        for reference in (huge, "../desk", "/etc/passwd", "desk\n", ""):
            with pytest.raises(KsiError) as failed:
                await house.call("composition_compare", a=reference, b="desk")
            assert len(failed.value.text()) < 1_000
        assert {name: text for name, text in library(house).items() if "decisions" not in name} == before


async def test_a_learning_of_another_pattern_or_of_runs_that_are_gone_is_refused(open_house) -> None:
    async with open_house() as house:
        await desks(house)
        await house.call("composition_create", document={**PATTERN, "name": "other"})
        (of_other,) = await runs(house.call, "other", [0.5])
        (of_fork,) = await runs(house.call, "desk_two", [0.5])
        (own,) = await runs(house.call, "desk", [0.5])
        before = library(house)
        learning = {"insight": "It guesses.", "confidence": 0.9}
        for strange, name in ((of_other, "other"), (of_fork, "desk_two")):
            with pytest.raises(Refused, match=f"is one of {name}"):
                await house.call("composition_add_learning", name="desk", **learning, evidence=[own, strange])
        with pytest.raises(Refused, match="no ended run"):
            await house.call("composition_add_learning", name="desk", **learning, evidence=[own, "o_" + "z" * 5_000])
        with pytest.raises(KsiError):
            await house.call("composition_add_learning", name="desk", **learning, evidence=[])
        assert library(house) == before
        # A run that was put back to a checkpoint has not ended any more.
        run = (await house.call("orchestration_start", pattern="desk"))["orchestration"]
        await house.call("checkpoint_create", orchestration=run)
        await house.call("orchestration_complete", orchestration=run)
        await house.call("checkpoint_restore", orchestration=run)
        with pytest.raises(Refused, match="no ended run"):
            await house.call("composition_add_learning", name="desk", **learning, evidence=[run])
        assert library(house) == before


async def test_an_agent_learns_as_itself_and_a_learning_is_not_said_twice(open_house) -> None:
    async with open_house() as house:
        await desks(house)
        agent = await house.spawn("maker", MAKER)
        made = await runs(house.call, "desk", [0.5])
        learning = {"name": "desk", "insight": "It guesses.", "confidence": 0.9, "evidence": made}
        with pytest.raises(Refused, match="cannot"):
            await act(house, agent, "composition_add_learning", **learning, discovered_by="operator")
        done = await act(house, agent, "composition_add_learning", **learning)
        assert done["discovered_by"] == agent
        with pytest.raises(Conflict, match="already"):
            await house.call("composition_add_learning", **learning)
        (told,) = house.events("composition:learned")
        assert (told["evidence"], told["discovered_by"]) == (made, agent)


async def test_only_an_ancestor_gives_its_place(open_house) -> None:
    async with open_house() as house:
        await desks(house)
        await house.call("composition_fork", parent="desk_two", name="desk_three", reason="to see",
                         modifications={"agents.clerk.prompt": "You think."})  # fmt: skip
        await runs(house.call, "desk", LOW)
        await runs(house.call, "desk_three", HIGH)
        with pytest.raises(Invalid, match="it descends from desk_two, desk"):
            await house.call("composition_promote", name="desk_three", over="consensus")
        with pytest.raises(Conflict, match="0 of 10 for a"):
            await house.call("composition_promote", name="desk_three")
        done = await house.call("composition_promote", name="desk_three", over="desk")
        assert (done["name"], done["version"]) == ("desk", "1.1.0")
        with pytest.raises(NotFound):
            await house.call("composition_promote", name="nobody")
        with pytest.raises(Invalid, match="not a metric"):
            await house.call("composition_compare", a="desk", b="desk_two", metric="luck")
        with pytest.raises(Invalid, match="the same version"):
            await house.call("composition_compare", a="desk", b="desk")


async def test_what_a_file_claims_is_shown_apart_from_what_runs_came_to(open_house) -> None:
    async with open_house() as house:
        claims = {"avg_score": 0.99, "runs": 1_000}
        await house.call("composition_create", document={**PATTERN, "performance": claims})
        shown = await house.call("composition_get", name="desk")
        assert shown["measured"] == {"claimed": claims}
        await runs(house.call, "desk", [0.2, 0.4])
        shown = await house.call("composition_get", name="desk")
        assert (shown["measured"]["claimed"], shown["document"]["performance"]) == (claims, claims)
        found = shown["measured"]["performance"]
        assert (found["runs"], found["avg_score"], found["success_rate"]) == (2, 0.3, 1.0)
        assert "claimed" not in library(house)["orchestrations/desk.yaml"].decode()


async def test_what_many_learn_at_once_is_kept_or_refused_and_never_lost(open_house) -> None:
    async with open_house() as house:
        await desks(house)
        made = await runs(house.call, "desk", [0.5])

        async def learn(n: int) -> str | None:
            try:
                done = await house.call(
                    "composition_add_learning", name="desk", insight=f"no. {n}", confidence=1, evidence=made
                )
            except Conflict:  # somebody else was quicker
                return None
            return str(done["insight"])

        said = {insight for insight in await asyncio.gather(*map(learn, range(8))) if insight is not None}
        document = (await house.call("composition_get", name="desk"))["document"]
        assert {each["insight"] for each in document["learnings"]} == said != set()
        assert len(house.events("composition:learned")) == len(said)


async def test_a_promotion_of_two_at_once_is_done_once(open_house) -> None:
    async with open_house() as house:
        await desks(house)
        await house.call("composition_fork", parent="desk", name="desk_three", reason="to see",
                         modifications={"agents.clerk.prompt": "You think."})  # fmt: skip
        await runs(house.call, "desk", LOW)
        for name in ("desk_two", "desk_three"):
            await runs(house.call, name, HIGH)
        done = await asyncio.gather(
            *(house.call("composition_promote", name=name) for name in ("desk_two", "desk_three")),
            return_exceptions=True,
        )
        (won,) = [each for each in done if isinstance(each, dict)]
        (lost,) = [each for each in done if not isinstance(each, dict)]
        assert isinstance(lost, Conflict)
        (told,) = house.events("composition:promoted")
        assert told["promoted_from"] == won["promoted_from"]
        now = await house.call("composition_get", name="desk")
        assert (now["version"], now["hash"]) == ("1.1.0", won["hash"])
        assert now["document"]["lineage"]["promoted_from"] == won["promoted_from"]


async def test_a_crash_between_file_and_row_leaves_a_whole_file_that_is_indexed(open_house, tmp_path) -> None:
    class Crash(Exception): ...

    def crash(_tx: Any) -> None:
        raise Crash

    async with open_house() as house:
        await desks(house)
        await runs(house.call, "desk", LOW)
        await runs(house.call, "desk_two", HIGH)
        args = {"name": "desk_two"}
        with pytest.raises(Crash):
            await house.app.toolbox.call(fresh_context(OPERATOR), "composition_promote", args, guard=crash)
        assert house.events("composition:promoted") == []
    async with open_house() as house:
        now = await house.call("composition_get", name="desk")
        assert (now["version"], now["document"]["lineage"]["promoted_from"]) == ("1.1.0", "desk_two@1.0.0")
        assert now["document"]["agents"]["clerk"]["prompt"] == "You weigh."
        with pytest.raises(Conflict, match="0 of 10 for a"):  # it stands there already: nothing is promoted twice
            await house.call("composition_promote", name="desk_two")


async def test_comments_of_a_hand_written_pattern_survive_a_learning(open_house) -> None:
    async with open_house() as house:
        await desks(house)
        (made,) = await runs(house.call, "desk", [0.5])
        file = house.home.root / "compositions" / "orchestrations" / "desk.yaml"
        file.write_text(f"# Ours.\n{file.read_text('utf-8')}", "utf-8")
        house.gate.ahead_ms += 5_000
        await house.call("composition_discover")
        await house.call("composition_add_learning", name="desk", insight="x", confidence=1, evidence=[made])
        assert file.read_text("utf-8").startswith("# Ours.\n")


# ------------------------------------------------------------------------------------------- evaluating


async def test_a_profile_and_a_pattern_are_evaluated_and_their_runs_compared(open_house) -> None:
    async with open_house(SCRIPT) as house:
        await desks(house)
        await house.call("composition_create", document=SUITE)
        profile = {"name": "weigher", "type": "agent", "prompt": "You weigh."}
        await house.call("composition_create", document=profile)
        done = {}
        for name in ("desk", "desk_two", "weigher"):
            done[name] = await house.call(
                "composition_evaluate", name=name, suite="desk_cases", runs=5, budget={"turns": 50}
            )
        assert done["desk"]["census"] == {
            "planned": 15, "passed": 10, "failed": 5, "unjudged": 0, "running": 0, "not_run": 0
        }  # fmt: skip
        assert (done["desk"]["score"], done["desk_two"]["score"], done["weigher"]["score"]) == (0.8, 1.0, 1.0)
        hard = next(case for case in done["desk"]["cases"] if case["case"] == "hard")
        assert (hard["judged"], hard["passed"]) == (5, 0)
        assert "regular expression" in hard["problems"][0]
        shown = await house.call("composition_compare", a="desk", b="desk_two", metric="success", suite="desk_cases")
        assert (shown["a"]["n"], shown["b"]["n"], shown["verdict"]) == (15, 15, "b is better")
        # Work and tests are not mixed: there was no work yet.
        shown = await house.call("composition_compare", a="desk", b="desk_two", metric="success")
        assert shown["verdict"].startswith("not enough runs: 0 of 10")
        promoted = await house.call("composition_promote", name="desk_two", metric="success", suite="desk_cases")
        assert promoted["version"] == "1.1.0"
        seen = await house.call("composition_get", name="weigher")
        assert seen["measured"]["evaluations"]["runs"] == 15
        assert len(house.events("composition:evaluated")) == 3
        assert house.rows("SELECT * FROM orchestration WHERE state = 'running'") == []
        house.books()


async def test_an_evaluation_stops_at_its_budget_and_says_what_was_not_run(open_house) -> None:
    async with open_house(SCRIPT) as house:
        await desks(house)
        await house.call("composition_create", document=SUITE)
        with pytest.raises(Invalid, match="needs a budget"):
            await house.call("composition_evaluate", name="desk", suite="desk_cases")
        done = await house.call(
            "composition_evaluate", name="desk", suite="desk_cases", runs=4, budget={"turns": 5}, parallel=2
        )
        census = done["census"]
        assert census["passed"] + census["failed"] == 5
        assert census["planned"] == 12 == sum(census[key] for key in census if key != "planned")
        assert census["not_run"] >= 6
        assert "budget is used up" in done["next"]
        assert done["budget"]["spent_turns"] == 5
        # What the budget kept from answering is no failure of the pattern.
        unsaid = house.rows("SELECT success FROM composition_run WHERE outcome = 'not judged'")
        assert unsaid == [(None,)] * census["unjudged"]


async def test_an_evaluation_goes_on_where_a_call_ended(open_house) -> None:
    slow = {**SCRIPT, "default": {"reply": "wrong", "latency_s": 1}}
    async with open_house(slow) as house:
        await desks(house)
        await house.call("composition_create", document=SUITE)
        begun = await house.call(
            "composition_evaluate", name="desk", suite="desk_cases", budget={"usd": 1}, wait_s=0, parallel=3
        )
        assert begun["census"]["running"] == 3
        await house.call("composition_create", document={**PATTERN, "name": "unrelated"})
        house.gate.opened.set()
        done = await house.call("composition_evaluate", evaluation=begun["evaluation"])
        assert (done["census"]["passed"], done["census"]["failed"], done["census"]["running"]) == (2, 1, 0)
        again = await house.call("composition_evaluate", evaluation=begun["evaluation"])
        assert again["census"] == done["census"]
        agent = await house.spawn("maker", MAKER)
        with pytest.raises(Refused, match="one of operator"):
            await act(house, agent, "composition_evaluate", evaluation=begun["evaluation"])


async def test_two_calls_for_one_evaluation_make_each_run_once(open_house) -> None:
    async with open_house(SCRIPT) as house:
        await desks(house)
        await house.call("composition_create", document=SUITE)
        begun = await house.call(
            "composition_evaluate", name="desk", suite="desk_cases", runs=6, budget={"turns": 99}, wait_s=0
        )
        done = await asyncio.gather(
            *(house.call("composition_evaluate", evaluation=begun["evaluation"], parallel=5) for _ in range(3))
        )
        for each in done:
            assert (each["census"]["passed"], each["census"]["failed"], each["census"]["not_run"]) == (12, 6, 0)
        assert house.rows("SELECT COUNT(*) FROM composition_run") == [(18,)]
        assert house.rows("SELECT case_name, COUNT(*) FROM evaluation_run GROUP BY 1 ORDER BY 1") == [
            ("easy", 6), ("hard", 6), ("odd", 6)
        ]  # fmt: skip
        assert house.rows("SELECT COUNT(*) FROM evaluation_run WHERE problems LIKE '%somebody%'") == [(0,)]
        assert len(house.events("composition:evaluated")) == 1


async def test_an_agent_evaluates_in_its_own_turn_and_its_word_promotes_nothing(open_house) -> None:
    asked = {"name": "desk_two", "suite": "desk_cases", "runs": 5, "budget": {"turns": 40}, "parallel": 3}
    script = {
        **SCRIPT,
        "replies": [
            {
                "match": {"agent": "maker", "round": 1},
                "tool_calls": [{"name": "composition_evaluate", "input": asked}],
            },
            {"match": {"agent": "maker", "round": 2}, "reply": "{{results[0].census.passed}} passed"},
            *SCRIPT["replies"],
        ],
    }
    async with open_house(script) as house:
        agent = await house.spawn("maker", MAKER)
        await desks(house)
        await house.call("composition_create", document=SUITE)
        turn = await house.ask(agent)
        assert turn["text"] == "15 passed", turn
        assert house.rows("SELECT DISTINCT reported_by, suite IS NOT NULL FROM composition_run") == [
            (f"agent:{agent}", 1)
        ]
        assert house.rows("SELECT COUNT(*) FROM evaluation") == [(1,)]
        await house.call("composition_evaluate", name="desk", suite="desk_cases", runs=5, budget={"turns": 40})
        with pytest.raises(Conflict, match="0 of 10 for b"):
            await act(house, agent, "composition_promote", name="desk_two", metric="success", suite="desk_cases")
        house.books()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cases": []}, "list of 1 to 200"),
        ({"cases": [{"input": "x"}]}, "cases.0.expect is missing"),
        ({"cases": [{"input": "", "expect": "x"}]}, "cases.0.input"),
        ({"cases": [{"input": "x", "expect": {"regexp": "x"}}]}, "unknown key"),
        ({"cases": [{"input": "x", "expect": "y", "weight": 0}]}, "cases.0.weight"),
        ({"cases": [{"input": "x", "expect": "y", "runs": 1e9}]}, "cases.0.runs"),
        ({"cases": [{"name": "a", "input": "x", "expect": "y"}] * 2}, "two cases are named 'a'"),
        ({"cases": [{"input": "x", "expect": "y"}] * 150, "runs": 50}, "7,500 runs"),
    ],
)
async def test_cases_that_cannot_be_run_are_refused_with_their_place(open_house, change: Any, says: str) -> None:
    async with open_house(SCRIPT) as house:
        await desks(house)
        await house.call("composition_create", document={**SUITE, **change})
        with pytest.raises(Invalid, match=says):
            await house.call("composition_evaluate", name="desk", suite="desk_cases", budget={"turns": 5})
        assert house.rows("SELECT * FROM evaluation") == house.rows("SELECT * FROM orchestration") == []


async def test_only_one_agent_is_evaluated_and_only_by_an_evaluation(open_house) -> None:
    async with open_house(SCRIPT) as house:
        await desks(house)
        await house.call("composition_create", document=SUITE)
        two = {**PATTERN, "name": "pair", "agents": {"a": {"prompt": "x"}, "b": {"prompt": "y"}}}
        await house.call("composition_create", document=two)
        with pytest.raises(Invalid, match="with 2 agents"):
            await house.call("composition_evaluate", name="pair", suite="desk_cases", budget={"turns": 5})
        with pytest.raises(Invalid, match="not an evaluation"):
            await house.call("composition_evaluate", name="desk", suite="desk_two", budget={"turns": 5})
        with pytest.raises(Invalid, match="needs name and suite"):
            await house.call("composition_evaluate", name="desk", budget={"turns": 5})
