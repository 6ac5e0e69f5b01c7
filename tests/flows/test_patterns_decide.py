"""Patterns in which agents compare and decide, run over MCP with scripted agents."""

from __future__ import annotations

import json
from itertools import combinations


async def test_a_debate_is_judged_on_the_arguments_that_were_heard(perform) -> None:
    async with perform("debate_with_judge") as stage:
        # Started on a question, which has no two sides: stopped, and begun again with a proposition.
        await stage.start("debate_with_judge", text="debate", vars={"proposition": "Should we work at home?"})
        stopped = await stage.call(
            "orchestration_control", orchestration=stage.run, action="stop", reason="not a proposition"
        )
        assert (stopped["state"], stopped["agents_ended"], stopped["budget"]["spent_turns"]) == ("stopped", 4, 0)
        await stage.start("debate_with_judge", text="debate", vars={"proposition": "We work at home.", "rounds": 1})

        openings = [
            await stage.send("proponent", "You are FOR. Round 0: your opening. Do not wait for the other side."),
            await stage.send("opponent", "You are AGAINST. Round 0: your opening. Do not wait for the other side."),
        ]
        await stage.gather(*openings)
        await stage.events("debate:fact_note", 1)
        await stage.settle(2 + 6 + 3)
        ask = "Round 1: answer the other side's last argument and any fact note, then emit your argument."
        await stage.gather(await stage.send("opponent", ask))
        await stage.settle(11 + 1 + 3)
        await stage.gather(await stage.send("proponent", ask))
        arguments = await stage.events("debate:argument", 4)
        await stage.settle(15 + 1 + 3)
        await stage.gather(await stage.send("judge", "The debate is closed. Give your verdict."))
        (verdict,) = await stage.events("debate:verdict", 1)

        # Its confidence is below 0.6, so a second judge is asked, who knows no sides.
        second = await stage.call(
            "agent_spawn",
            composition="base_agent",
            name="second_judge",
            prompt="You judge a debate by these criteria: evidence. You know neither side.",
            orchestration=stage.run,
        )
        stage.ids["second_judge"] = second["agent"]
        named = {"for": "Y", "against": "X"}
        text = "".join(f"{named[each['side']]}: {each['text']}\n" for each in reversed(arguments))
        (opinion,) = await stage.gather(await stage.send("second_judge", f"{text}Who argued better?"))
        await stage.settle(21)
        decision = await stage.track(
            "verdict",
            context={"scores": verdict["scores"], "second_opinion": opinion},
            reasoning=verdict["decisive"],
            confidence=verdict["confidence"],
            outcome=verdict["winner"],
        )
        ended = await stage.complete(
            turns=21, outcome="success", score=0.8, metrics=verdict["scores"], summary=verdict["decisive"]
        )

        against = "(they say home is quiet) yet false it is"
        assert sorted(verdict["reasons"]) == [
            "against 0: teams drift apart",
            f"against 1: {against}",
            "for 0: home is quiet",
            f"for 1: granted: they say {against}",
            "for claimed a way takes 3 hours: false",
        ]
        assert ended["summary"] == f"against 1: {against}"
        assert opinion == f"X, by: {against}"
        assert (ended["state"], ended["outcome"], ended["score"], ended["agents_ended"]) == (
            "completed", "success", 0.8, 5
        )  # fmt: skip
        assert await stage.participants() == {
            "proponent": 5, "opponent": 5, "fact_checker": 4, "judge": 6, "second_judge": 1
        }  # fmt: skip
        assert await stage.routes() == {
            "proponent -debate:argument-> opponent": 2,
            "proponent -debate:argument-> fact_checker": 2,
            "proponent -debate:argument-> judge": 2,
            "opponent -debate:argument-> proponent": 2,
            "opponent -debate:argument-> fact_checker": 2,
            "opponent -debate:argument-> judge": 2,
            "fact_checker -debate:fact_note-> proponent": 1,
            "fact_checker -debate:fact_note-> opponent": 1,
            "fact_checker -debate:fact_note-> judge": 1,
        }
        (kept,) = stage.decisions()
        assert (kept["id"], kept["outcome"], kept["confidence"]) == (decision["decision_id"], "against", 0.55)
        assert kept["context"] == {"scores": {"for": 6, "against": 8}, "second_opinion": opinion}


async def test_a_panel_reaches_consensus_by_what_the_moderator_passes_on(perform) -> None:
    members = ["pragmatist", "sceptic", "strategist"]
    async with perform("consensus") as stage:
        await stage.start("consensus", text="consensus", vars={"question": "Which database?", "max_rounds": 3})

        emitted = await stage.call("event_emit", event="consensus:round", data={"round": 1}, orchestration=stage.run)
        assert emitted["delivered"] == 3
        await stage.settle(3 + 2)
        positions = {each["answer"]: each for each in await stage.events("consensus:position", 2)}
        assert set(positions) == {"sqlite", "postgres"}
        await stage.gather(await stage.send("strategist", "Round 1: emit your consensus:position."))
        (summary,) = await stage.events("consensus:summary", 1)
        assert sorted(summary["arguments"]) == [
            "postgres: many writers",
            "sqlite: easy to undo",
            "sqlite: one file to copy",
        ]

        # No names in it, and the strongest argument first.
        summary["arguments"].sort(reverse=True)
        data = {"round": 2, "question": "Which database?", "summary": summary}
        await stage.call("event_emit", event="consensus:round", data=data, orchestration=stage.run)
        summary = (await stage.events("consensus:summary", 2))[-1]
        positions = (await stage.events("consensus:position", 6))[3:]
        await stage.settle(13)
        assert {each["answer"] for each in positions} == {"sqlite"}
        moved = [each["moved_by"] for each in positions if each["moved_by"]]
        lowest = min(each["confidence"] for each in positions)
        decision = await stage.track(
            "consensus_reached", context={"rounds": 2, "moved_by": moved}, reasoning="all three agree",
            confidence=lowest, outcome="success",
        )  # fmt: skip
        ended = await stage.complete(
            turns=13,
            outcome="success",
            metrics={"rounds": 2, "agreement": 1.0},
            summary="; ".join(summary["arguments"]),
        )
        # What the run taught goes into a copy of the pattern.
        forked = await stage.call(
            "composition_fork",
            parent="consensus",
            name="consensus_in_two",
            reason=f"run {stage.run} needed two rounds",
            modifications={"variables.max_rounds.default": 2},
        )
        # A second look at what was changed, and it goes into a version of the pattern's own line.
        compared = await stage.call("composition_diff", a="consensus", b="consensus_in_two")
        merged = await stage.call(
            "composition_merge", source="consensus_in_two", target="consensus", name="consensus_next"
        )

        assert sorted(ended["summary"].split("; ")) == [
            "sqlite: few writers", "sqlite: sqlite: one file to copy", "sqlite: sqlite: one file to copy"
        ]  # fmt: skip
        assert (ended["state"], ended["agents_ended"]) == ("completed", 4)
        assert moved == ["sqlite: one file to copy"]
        assert await stage.participants() == {"pragmatist": 2, "sceptic": 2, "strategist": 3, "moderator": 6}
        assert await stage.routes() == {
            **{f"operator -consensus:round-> {name}": 2 for name in members},
            **{f"{name} -consensus:position-> moderator": 2 for name in members},
        }
        (kept,) = stage.decisions()
        assert (kept["id"], kept["confidence"]) == (decision["decision_id"], 0.75)
        copy = (await stage.look("composition_get", name="consensus_in_two"))["document"]
        assert (copy["variables"]["max_rounds"]["default"], forked["parent"]) == (2, "consensus")
        assert stage.run in json.dumps(copy["lineage"])
        assert "variables.max_rounds.default" in [change["path"] for change in compared["changes"]]
        assert merged.get("conflicts") in (None, [])
        following = (await stage.look("composition_get", name="consensus_next"))["document"]
        assert following["variables"]["max_rounds"]["default"] == 2


async def test_a_tournament_drops_whoever_has_no_chance_and_ends_with_the_best_solution(perform) -> None:
    async with perform("adaptive_tournament") as stage:
        await stage.start("adaptive_tournament", text="tournament", vars={"task": "a sum", "matches_to_decide": 3})
        field = ["contestant_direct", "contestant_inventive", "contestant_rigorous"]
        improve, matches, turns, entries, results = "", 0, 0, 0, 0
        wins: dict[str, int] = dict.fromkeys(field, 0)
        solutions: dict[str, str] = {}
        losers: set[str] = set()

        for n in (1, 2, 3):
            data = {"round": n, "task": "a sum", "what_to_improve": improve}
            emitted = await stage.call("event_emit", event="tournament:round", data=data, orchestration=stage.run)
            assert emitted["delivered"] == len(field)
            entries += len(field)
            await stage.events("tournament:entry", entries)
            page = await stage.call(
                "event_query", names=["tournament:entry"], orchestration=stage.run, limit=len(field)
            )
            who = {f"agent:{stage.ids[name]}": name for name in field}
            solutions = {who[event["source"]]: event["data"]["solution"] for event in page["events"]}
            pairs = list(combinations(sorted(field), 2))
            if len(pairs) == 1:  # the deciding match is judged twice, with A and B exchanged
                pairs.append(pairs[0][::-1])
            for k, (a, b) in enumerate(pairs, 1):
                match = {"match": f"{n}-{k}", "A": solutions[a], "B": solutions[b]}
                await stage.call("event_emit", event="tournament:match", data=match, orchestration=stage.run)
            matches += len(pairs)
            turns += len(field) + 2 * len(pairs)
            judged = (await stage.events("tournament:result", matches))[results:]
            results = matches
            feedback: dict[str, str] = {}
            for pair, result in zip(pairs, judged, strict=True):
                winner = pair["AB".index(result["winner"])]
                (loser,) = set(pair) - {winner}
                wins[winner] += 1
                feedback[loser] = result["feedback"]["BA"["AB".index(result["winner"])]]
            await stage.gather(
                *[await stage.send(name, f"tournament:feedback {text}") for name, text in feedback.items()]
            )
            turns += len(feedback)
            insights = await stage.events("tournament:insight", matches - 2)
            await stage.settle(turns)
            improve = insights[-1]["pattern"]
            if n == 2:
                assert wins == {"contestant_rigorous": 4, "contestant_direct": 2, "contestant_inventive": 0}
                await drop(stage, "contestant_inventive")
                field.remove("contestant_inventive")
            losers |= set(feedback)

        best = max(wins, key=lambda name: wins[name])
        decision = await stage.track(
            "winner", context={"table": wins}, reasoning="it brought a proof each time", confidence=0.9,
            outcome="rigorous",
        )  # fmt: skip
        ended = await stage.complete(
            turns=turns, outcome="success", metrics={"rounds": 3, "matches": matches}, summary=solutions[best]
        )

        first = "after 1-3: (proof of a sum; ) decides"
        assert ended["summary"] == f"proof of a sum; after 2-3: (proof of a sum; {first}) decides"
        assert losers == {"contestant_direct", "contestant_inventive"}
        assert (ended["agents_ended"], matches) == (4, 8)
        assert await stage.participants() == {
            "contestant_direct": 6, "contestant_inventive": 4, "contestant_rigorous": 3, "judge": 8, "analyst": 8
        }  # fmt: skip
        assert await stage.routes() == {
            "operator -tournament:round-> contestant_direct": 3,
            "operator -tournament:round-> contestant_inventive": 2,
            "operator -tournament:round-> contestant_rigorous": 3,
            "operator -tournament:match-> judge": 8,
            "judge -tournament:result-> analyst": 8,
        }
        assert "contestant" not in json.dumps([turn["prompt"] for turn in await stage.history("judge")])
        dropped, won = stage.decisions()
        assert (dropped["decision"], dropped["context"]) == ("dropped", {"contestant": "contestant_inventive"})
        assert (won["id"], won["context"]["table"]["contestant_rigorous"]) == (decision["decision_id"], 6)


async def drop(stage, name: str) -> None:
    """ADAPT: the route to a contestant is undone, and it ends."""
    rules = (await stage.call("routing_query_rules", filter={"event": "tournament:round"}))["rules"]
    (rule,) = [rule for rule in rules if rule["target"] == f"agent:{stage.ids[name]}"]
    await stage.call("routing_delete_rule", rule_id=rule["rule_id"], reason="lost every match of two rounds")
    gone = await stage.call("agent_terminate", agent=stage.ids[name], reason="lost every match of two rounds")
    assert gone == {"agents": [stage.ids[name]], "cancelled_turns": 0}
    living = await stage.call("agent_list", filter={"orchestration": stage.run})
    assert {agent["name"] for agent in living["agents"]} == set(stage.ids) - {name}
    await stage.track("dropped", context={"contestant": name}, reasoning="lost every match", confidence=0.9)
