"""Patterns in which agents make something together, run over MCP with scripted agents."""

from __future__ import annotations

import json


async def test_a_pipeline_sends_a_draft_back_until_the_reviewer_is_content(perform) -> None:
    async with perform("pipeline_with_review") as stage:
        await stage.start(
            "pipeline_with_review", text="review", vars={"task": "a notice about the lift", "max_rounds": 4}
        )
        begun = await stage.send("analyst", "Begin. The task: the lift stands still")
        assert await stage.gather(begun) == ["analyst emitted pipeline:analyzed"]
        (brief,) = await stage.events("pipeline:analyzed", 1)
        assert brief["brief"] == "Goal: the lift stands still"

        # Has the brief gone where the static rules say?
        (event,) = (await stage.call("event_query", names=["pipeline:analyzed"], orchestration=stage.run))["events"]
        heard = await stage.call("routing_explain", event_id=event["event_id"])
        drafter, reviewer = f"agent:{stage.ids['drafter']}", f"agent:{stage.ids['reviewer']}"
        assert {match["target"] for match in heard["fires"]} == {drafter, reviewer}
        assert heard["not_firing"] == []

        (approved,) = await stage.events("pipeline:approved", 1)
        released = await stage.send("approver", f"May this go out? {approved['draft']}")
        waiting = (await stage.call("agent_wait", turns=[released], timeout_s=20))["turns"][0]
        assert waiting["parked_on"] == "answer"
        assert waiting["question"].endswith("Its last reply: ask: it promises a repair on Monday")
        said = await stage.call("completion_answer", turn=released, text="yes, the mechanic has confirmed")
        assert (said["status"], said["answered_by"]) == ("done", "operator")
        await stage.settle(7)
        decision = await stage.track(
            "accepted",
            context={"round": approved["round"], "open": approved["open"]},
            reasoning="the reviewer has no must left",
            confidence=0.9,
            outcome="success",
        )
        ended = await stage.complete(
            turns=7, outcome="success", metrics={"rounds": approved["round"]}, summary=approved["draft"]
        )

        assert approved["draft"] == ended["summary"] == "the lift stands still: Monday. Call 555."
        assert (ended["state"], ended["outcome"], ended["agents_ended"]) == ("completed", "success", 4)
        assert await stage.participants() == {"analyst": 1, "drafter": 2, "reviewer": 3, "approver": 1}
        assert await stage.routes() == {
            "analyst -pipeline:analyzed-> drafter": 1,
            "analyst -pipeline:analyzed-> reviewer": 1,
            "drafter -pipeline:drafted-> reviewer": 2,
            "reviewer -pipeline:changes_requested-> drafter": 1,
        }
        (kept,) = stage.decisions()
        assert kept["id"] == decision["decision_id"]
        assert (kept["decision"], kept["confidence"], kept["outcome"]) == ("accepted", 0.9, "success")
        assert kept["context"] == {"round": 2, "open": ["R1 could name the hour"]}
        assert kept["agent"] == decision["agent"] == "operator"


async def test_a_dry_run_of_an_agents_event_finds_the_rules_of_the_agents_run(perform) -> None:
    async with perform("pipeline_with_review", whole=False) as stage:
        await stage.start("pipeline_with_review", text="review", vars={"task": "a notice"})
        analyst = f"agent:{stage.ids['analyst']}"
        heard = await stage.look("routing_explain", event="pipeline:analyzed", source=analyst)
        assert len(heard["fires"]) == 2


async def test_research_is_mapped_challenged_and_reduced_to_one_answer(perform) -> None:
    question = "What did the town spend on bridges?"
    async with perform("map_reduce_research") as stage:
        await stage.start("map_reduce_research", text="research", vars={"question": question, "max_parts": 7})
        await stage.gather(await stage.send("planner", "Begin."))
        (plan,) = await stage.events("research:plan", 1)
        parts = {part["id"]: part for part in plan["parts"]}
        split = await stage.track("split", context={"parts": list(parts)}, reasoning="one year each", confidence=0.8)

        # More than six parts: a fourth researcher, with the duties of the others and a route of its own.
        duties = (await stage.call("composition_get", name="map_reduce_research"))["document"]["agents"]
        prompt = duties["researcher_a"]["prompt"].replace("{{question}}", question).replace("{{material}}", "none")
        fourth = await stage.call(
            "agent_spawn", composition="base_agent", name="researcher_d", prompt=prompt, orchestration=stage.run
        )
        stage.ids["researcher_d"] = fourth["agent"]
        rule = await stage.call(
            "routing_add_rule",
            source_pattern="research:finding",
            source_agent=fourth["agent"],
            target="agent:checker",
            scope=f"orchestration:{stage.run}",
            rule_id="findings_of_researcher_d",
        )
        assert rule["target"] == f"agent:{stage.ids['checker']}"

        names = ["researcher_a", "researcher_b", "researcher_c", "researcher_d"]
        has = {part: names[number % 4] for number, part in enumerate(parts)}
        asked = [
            await stage.send(
                has[id], f"Part {id}: {part['question']} Done when: {part['done_when']}. Look at: {part['look_at']}."
            )
            for id, part in parts.items()
        ]
        await stage.gather(*asked)
        assert len(await stage.events("research:checked", 6)) == 6
        (challenge,) = await stage.events("research:challenge", 1)
        assert has[challenge["part"]] == "researcher_d"
        answered = await stage.send("researcher_d", f"research:challenge {json.dumps(challenge)}")
        await stage.gather(answered)
        checked = await stage.events("research:checked", 7)
        assert {each["part"] for each in checked} == set(parts)

        found = {finding["part"]: finding["answer"] for finding in await stage.events("research:finding", 8)}
        findings = "; ".join(f"{part} {answer}" for part, answer in sorted(found.items()))
        (text,) = await stage.gather(
            await stage.send("synthesizer", f"The findings: {findings}. Remarks: none. Write the answer.")
        )
        (answer,) = await stage.events("research:answer", 1)
        await stage.settle(18)
        accepted = await stage.track(
            "answer_accepted", context={"parts": 7, "challenged": 1}, reasoning="all checked", confidence=0.7,
            outcome="success",
        )  # fmt: skip
        ended = await stage.complete(
            turns=18, outcome="success", metrics={"parts": 7, "challenged": 1, "given_up": 0}, summary=answer["answer"]
        )

        assert ended["summary"] == (
            "In all: P1 2001 in the ledger; P2 2002 in the ledger; P3 2003 in the ledger; "
            "P4 corrected by the receipt of 2004; P5 2005 in the ledger; P6 2006 in the ledger; P7 2007 in the ledger"
        )
        assert text == "synthesizer emitted research:answer"
        assert (ended["state"], ended["agents_ended"]) == ("completed", 7)
        assert await stage.participants() == {
            "planner": 1, "researcher_a": 2, "researcher_b": 2, "researcher_c": 2, "researcher_d": 2,
            "checker": 8, "synthesizer": 1,
        }  # fmt: skip
        assert await stage.routes() == {f"{name} -research:finding-> checker": 2 for name in names}
        assert [kept["id"] for kept in stage.decisions()] == [split["decision_id"], accepted["decision_id"]]
        assert stage.decisions()[0]["context"] == {"parts": ["P1", "P2", "P3", "P4", "P5", "P6", "P7"]}


async def test_a_team_opens_its_own_routes_and_adds_the_specialist_it_lacks(perform) -> None:
    async with perform("self_organizing_analysis_team") as stage:
        await stage.start("self_organizing_analysis_team", text="self-organizing", vars={"subject": "the old bridge"})
        analysts = ["structure_analyst", "risk_analyst", "opportunity_analyst"]
        await stage.gather(*[await stage.send(name, "Begin.") for name in analysts])
        (need,) = await stage.events("analysis:need", 1)
        await stage.events("analysis:finding", 5)
        await stage.settle(13)

        # The coordinator had the route opened by whoever has the findings; it is narrowed while the run goes on.
        rules = await stage.call("routing_query_rules", filter={"event": "analysis:finding"})
        opened = {rule["rule_id"]: rule for rule in rules["rules"]}["findings_for_opportunity_analyst"]
        structure = f"agent:{stage.ids['structure_analyst']}"
        assert (opened["created_by"], opened["scope"]) == (structure, structure)
        assert opened["target"] == f"agent:{stage.ids['opportunity_analyst']}"
        assert opened["condition"] == "data.severity >= 3"
        narrowed = await stage.call(
            "routing_modify_rule",
            rule_id=opened["rule_id"],
            updates={"condition": "data.severity >= 5"},
            reason="opportunity_analyst gets more than it answers",
        )
        assert narrowed["version"] > opened["version"]
        dry = await stage.call("routing_explain", event="analysis:finding", data={"severity": 4}, source=structure)
        outcomes = {match["rule_id"]: match["outcome"] for match in dry["not_firing"]}
        assert outcomes["findings_for_opportunity_analyst"] == "condition_false"

        # Integrate; what is missing becomes a specialist, whose finding makes an analyst revise its own.
        await stage.gather(await stage.send("integrator", "Integrate."))
        (report,) = await stage.events("analysis:report", 1)
        assert report["blind_spots"] == ["what it costs"]
        await stage.gather(
            await stage.send("coordinator", f"Blind spot: {report['blind_spots'][0]}. Add what is needed, once.")
        )
        listed = await stage.call("event_emit", event="agent:list", data={"filter": {"orchestration": stage.run}})
        stage.ids |= {agent["name"]: agent["agent"] for agent in listed["result"]["agents"]}
        (conflict,) = await stage.events("analysis:conflict", 1)
        await stage.events("analysis:finding", 8)
        await stage.settle(25)
        await stage.gather(await stage.send("integrator", "Integrate."))
        report = (await stage.events("analysis:report", 2))[-1]

        explained = await stage.call("help", topic="agent:history")
        assert explained["how"].startswith("event_emit(event='agent:history'")
        (state,) = await stage.gather(await stage.send("coordinator", "The state, please."))
        asked = await stage.call("event_emit", event="agent:history", data={"agent": stage.ids["coordinator"]})
        assert asked["result"]["turns"][-1]["tools"] == ["agent_list"]
        await stage.settle(27)
        kept = await stage.track(
            "organization", context={"agents_added": 1, "rules_added": 3}, reasoning=state, confidence=0.8,
            outcome="success",
        )  # fmt: skip
        notes = {turn["reply"].removeprefix("kept ") for turn in report["findings"] if "kept " in turn["reply"]}
        ended = await stage.complete(
            turns=27, outcome="success", metrics={"findings": len(notes)}, summary="; ".join(sorted(notes))
        )

        assert ended["summary"] == (
            "C1: the pillar is dear; O1: a toll; O2: reuse less; O2: reuse what S1 a pillar bears all; "
            "R1: it may fall; S1: a pillar bears all; S1: a pillar bears all, and is dear; S2: rust"
        )
        assert need["blocks"] == conflict["mine"] == "O2"
        assert ended["agents_ended"] == 6
        assert state == "cost_analyst was added to coordinator and 4 others"
        assert await stage.participants() == {
            "structure_analyst": 5, "risk_analyst": 3, "opportunity_analyst": 4, "integrator": 10, "coordinator": 4,
            "cost_analyst": 1,
        }  # fmt: skip
        assert await stage.routes() == {
            "structure_analyst -analysis:finding-> integrator": 3,
            "structure_analyst -analysis:finding-> risk_analyst": 2,
            "structure_analyst -analysis:finding-> opportunity_analyst": 1,
            "risk_analyst -analysis:finding-> integrator": 1,
            "risk_analyst -analysis:finding-> structure_analyst": 1,
            "opportunity_analyst -analysis:finding-> integrator": 3,
            "opportunity_analyst -analysis:need-> coordinator": 1,
            "opportunity_analyst -analysis:conflict-> coordinator": 1,
            "cost_analyst -analysis:finding-> integrator": 1,
            "cost_analyst -analysis:finding-> structure_analyst": 1,
        }
        by_agent, by_client = stage.decisions()
        assert by_agent["agent"] == stage.ids["coordinator"]
        assert (by_agent["decision"], by_agent["orchestration"]) == ("opened_a_route", stage.run)
        assert (by_client["id"], by_client["reasoning"]) == (kept["decision_id"], state)
