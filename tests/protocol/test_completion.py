"""Completion of arguments and of template variables, in both eras."""

from __future__ import annotations

from mcp.types import PromptReference, ResourceTemplateReference

from ksi_mcp.permissions import OPERATOR, agent_actor, fresh_context

AGENT = ResourceTemplateReference(type="ref/resource", uri="ksi://agents/{id}")
RUN = ResourceTemplateReference(type="ref/resource", uri="ksi://orchestrations/{id}")
RULE = ResourceTemplateReference(type="ref/resource", uri="ksi://rules/{id}")
COMPOSITION = ResourceTemplateReference(type="ref/resource", uri="ksi://compositions/{name}")
EVENTS = ResourceTemplateReference(type="ref/resource", uri="ksi://events/{root}")


def prompt(name: str) -> PromptReference:
    return PromptReference(type="ref/prompt", name=name)


async def values(client, ref, name: str, value: str = "", given: dict[str, str] | None = None) -> list[str]:
    return (await client.complete(ref, {"name": name, "value": value}, given)).completion.values


async def test_agents_are_completed_by_name_and_id_those_that_begin_so_first(serve):
    async with serve() as (_, client):
        ids = {}
        for name in ("judge", "misjudged", "other"):
            made = await client.call_tool("agent_spawn", {"prompt": "x", "name": name})
            ids[name] = made.structured_content["agent"]
        assert await values(client, AGENT, "id", "jud") == ["judge", "misjudged"]
        assert await values(client, AGENT, "id", "JUD") == ["judge", "misjudged"]
        assert await values(client, AGENT, "id", ids["other"][:7]) == [ids["other"]]
        assert set(await values(client, AGENT, "id")) == {*ids, *ids.values()}


async def test_a_name_that_two_living_agents_have_is_offered_by_id_only(serve):
    async with serve() as (_, client):
        await client.call_tool("orchestration_start", {"pattern": "consensus", "vars": {"question": "tea?"}})
        assert "sceptic" in await values(client, AGENT, "id", "sceptic")
        await client.call_tool("agent_spawn", {"prompt": "x", "name": "sceptic"})
        assert "sceptic" not in await values(client, AGENT, "id", "sceptic")


async def test_runs_rules_compositions_and_roots_are_completed(serve):
    async with serve() as (_, client):
        started = await client.call_tool("orchestration_start", {"pattern": "consensus", "vars": {"question": "tea?"}})
        run, rules = started.structured_content["orchestration"], started.structured_content["rules"]
        assert await values(client, RUN, "id", run[:5]) == [run]
        assert await values(client, RUN, "id", "cons") == [run]  # by its pattern: nobody knows ids by heart
        assert await values(client, prompt("review_run"), "run") == [run]
        assert set(await values(client, RULE, "id")) == set(rules)
        assert await values(client, RULE, "id", rules[0]) == [rules[0]]
        assert set(await values(client, RULE, "id", "consensus:round")) < set(rules)
        root = (await client.call_tool("event_query", {"limit": 1})).structured_content["events"][0]["root"]
        assert root in await values(client, EVENTS, "root")
        assert await values(client, EVENTS, "root", root[:8]) == [root]
        assert await values(client, COMPOSITION, "name", "deb") == ["debate_with_judge"]
        assert "base_agent" in await values(client, COMPOSITION, "name", "agent")
        assert "base_agent" not in await values(client, prompt("orchestrate"), "pattern", "agent")


async def test_what_was_filled_in_already_narrows_it_down(serve):
    async with serve() as (_, client):
        started = await client.call_tool("orchestration_start", {"pattern": "consensus", "vars": {"question": "tea?"}})
        await client.call_tool("agent_spawn", {"prompt": "x", "name": "outsider"})
        run = {"run": started.structured_content["orchestration"]}
        inside = await values(client, prompt("review_run"), "agent", "", run)
        assert {agent["name"] for agent in started.structured_content["agents"]} <= set(inside)
        assert "outsider" not in inside
        assert "outsider" in await values(client, prompt("review_run"), "agent")

        await client.call_tool("composition_fork", {"parent": "consensus", "name": "agreeing", "reason": "a try"})
        assert await values(client, prompt("evolve"), "variant", "", {"pattern": "consensus"}) == ["agreeing"]
        assert await values(client, prompt("evolve"), "variant", "", {"pattern": "debate_with_judge"}) == []

        free = await values(client, prompt("orchestrate"), "pattern")
        goal = {"goal": "two sides argue for and against, then a judge decides: a debate with a judge"}
        ranked = await values(client, prompt("orchestrate"), "pattern", "", goal)
        assert ranked[0] == "debate_with_judge"
        assert sorted(ranked) == sorted(free)


async def test_at_most_a_hundred_are_given_and_the_rest_is_counted(serve):
    async with serve() as (_, client):
        for number in range(120):
            await client.call_tool("agent_spawn", {"prompt": "x", "name": f"worker{number}"})
        found = (await client.complete(AGENT, {"name": "id", "value": "worker"})).completion
        assert (len(found.values), found.total, found.has_more) == (100, 120, True)
        few = (await client.complete(AGENT, {"name": "id", "value": "worker11"})).completion
        assert (len(few.values), few.total, few.has_more) == (11, 11, False)


HOSTILE = ["x" * 10_000, "\0", "a\0b", "\n", "%", "_", "'; DROP TABLE agent; --", "\u202e", "é" * 150, "[*]"]


async def test_what_cannot_be_the_beginning_of_anything_is_answered_with_nothing(serve):
    async with serve() as (_, client):
        await client.call_tool("agent_spawn", {"prompt": "x", "name": "one"})
        await client.call_tool("orchestration_start", {"pattern": "consensus", "vars": {"question": "tea?"}})
        for value in HOSTILE:
            for ref, name in ((AGENT, "id"), (RUN, "id"), (RULE, "id"), (COMPOSITION, "name"), (EVENTS, "root")):
                found = [each for each in await values(client, ref, name, value) if value.strip() not in each]
                assert found == []
            for hostile in ({"run": value}, {"goal": value, "pattern": value}):
                await values(client, prompt("review_run"), "agent", "", hostile)
                await values(client, prompt("evolve"), "variant", "", hostile)
                await values(client, prompt("orchestrate"), "pattern", "", hostile)
        assert (await client.call_tool("agent_list", {})).structured_content["agents"]


async def test_what_we_do_not_have_has_no_completion(serve):
    async with serve() as (_, client):
        other = ResourceTemplateReference(type="ref/resource", uri="ksi://elsewhere/{id}")
        assert await values(client, prompt("nothing"), "goal", "x") == []
        assert await values(client, prompt("orchestrate"), "goal", "x") == []
        assert await values(client, prompt("orchestrate"), "nothing", "x") == []
        assert await values(client, other, "id", "x") == []
        assert await values(client, AGENT, "name", "x") == []


async def test_an_agent_is_offered_what_is_in_its_sight(serve):
    async with serve() as (app, _):

        async def suggested(actor, kind: str) -> list[str]:
            done = await app.toolbox.call(fresh_context(actor), "name_suggest", {"kind": kind, "limit": 100})
            return done.data["values"]

        made = await app.toolbox.call(fresh_context(OPERATOR), "agent_spawn", {"prompt": "x", "name": "inner"})
        agent = made.data["agent"]
        await app.toolbox.call(fresh_context(OPERATOR), "agent_spawn", {"prompt": "x", "name": "stranger"})
        start = {"pattern": "consensus", "vars": {"question": "tea?"}}
        await app.toolbox.call(fresh_context(OPERATOR), "orchestration_start", start)
        own = agent_actor(agent)
        assert await suggested(own, "agent") == ["inner", agent]
        assert await suggested(own, "run") == []
        assert await suggested(own, "rule") == []
        assert len(await suggested(own, "root")) == 1
        assert await suggested(own, "pattern") == await suggested(OPERATOR, "pattern")
        assert len(await suggested(OPERATOR, "agent")) > 2
