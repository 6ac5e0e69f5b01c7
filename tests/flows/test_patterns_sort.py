"""The pattern that sorts what comes in, run over MCP with scripted agents."""

from __future__ import annotations


async def test_items_are_ranked_and_dispatched_and_the_doubtful_ones_seen_twice(perform) -> None:
    items = "A1 the pump burns; A2 smoke at the pump; A3 a door squeaks; A4 the floor is wet"
    async with perform("triage_and_dispatch") as stage:
        handlers = "fire brigade: what burns; caretaker: the rest"
        await stage.start("triage_and_dispatch", text="triage", vars={"items": items, "handlers": handlers})
        batch = [dict(zip(("id", "text"), item.split(" ", 1), strict=True)) for item in items.split("; ")]
        await stage.call("event_emit", event="triage:batch", data={"items": batch}, orchestration=stage.run)
        classified = await stage.events("triage:classified", 3)
        (duplicate,) = await stage.events("triage:duplicate", 1)
        assert {each["id"] for each in classified} | {duplicate["id"]} == {"A1", "A2", "A3", "A4"}

        # What could not be told is asked for, and the answer puts the item higher.
        await stage.events("triage:dispatched", 3)
        await stage.gather(await stage.send("assessor", "Item A4: it drips from the lamp. Judge it again."))
        dispatched = {each["id"]: each for each in await stage.events("triage:dispatched", 4)}
        await stage.settle(11)
        confirmed = await stage.events("triage:confirmed", 2)
        corrected = [each["id"] for each in confirmed if each["level"] != each["was"]]
        await stage.track(
            "dispatched",
            context={"items": 4, "duplicates": 1, "critical": 1, "corrected": len(corrected), "nobody": 0},
            reasoning="every item has a handler",
            confidence=0.8,
            outcome="success",
        )
        order = sorted(dispatched.values(), key=lambda each: ["critical", "high", "low"].index(each["level"]))
        ended = await stage.complete(
            turns=11,
            outcome="success",
            metrics={"items": 4, "duplicates": 1, "critical": 1, "corrected": len(corrected), "given_up": 0},
            summary="; ".join(f"{each['id']} {each['level']} {each['handler']}" for each in order),
        )

        assert corrected == ["A4"]
        assert ended["summary"] == "A1 critical fire brigade; A4 high caretaker; A3 low caretaker"
        assert (ended["state"], ended["outcome"], ended["agents_ended"]) == ("completed", "success", 4)
        assert await stage.participants() == {
            "classifier": 1, "assessor": 4, "second_assessor": 2, "dispatcher": 4
        }  # fmt: skip
        assert await stage.routes() == {
            "operator -triage:batch-> classifier": 1,
            "classifier -triage:classified-> assessor": 3,
            "assessor -triage:assessed-> dispatcher": 2,
            "assessor -triage:assessed-> second_assessor": 2,
            "second_assessor -triage:confirmed-> dispatcher": 2,
        }
        (kept,) = stage.decisions()
        assert (kept["decision"], kept["outcome"]) == ("dispatched", "success")
